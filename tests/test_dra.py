"What a notebook cannot show well about adapters: random sizes, both kinds of CLIP, copies, files."
import copy
import json
import random
from dataclasses import asdict, replace

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close

from dra_nb.adapter import AdapterConfig
from dra_nb.attach import set_step
from dra_nb.clip import image_tower, real_tokens, text_tower
from dra_nb.dra import (
    DRA, DRAConfig, adapters, add_adapter, add_dra, dra_parameters, load_dra, recording,
    regularization, remove_dra, save_dra, set_valid)
from dra_nb.files import read_tensors, write_tensors
from dra_nb.masking import group_sizes, kept_channels, rank_mask
from dra_nb.methods import build_method
from dra_nb.methods.control import ControlConfig
from dra_nb.sorting import descending_order, gumbel_noise, places

TEXT = dict(context_length=12, vocab_size=64, width=32, heads=2, layers=4)
VISION = dict(image_size=16, patch_size=8, width=48, layers=4, head_width=12)
SMALL = DRAConfig(rank=8, start=3)
BEST = replace(DRAConfig.recommended(), rank=8, start=3)
PLAIN = AdapterConfig(rank=8, start=3)


def gen(seed):
    return torch.Generator().manual_seed(seed)


def clip(cls=CLIP, seed=0, vision=(), text=()):
    torch.manual_seed(seed)
    image, words = {**VISION, **dict(vision)}, {**TEXT, **dict(text)}
    return cls(embed_dim=24, vision_cfg=image, text_cfg=words).eval()


@pytest.fixture(scope='module')
def data():
    tokens = torch.randint(1, 60, (5, 12), generator=gen(1))
    tokens[:, 7] = 63
    tokens[:, 8:] = 0
    return torch.randn(4, 3, 16, 16, generator=gen(0)), tokens


def add(model, config, seed=2):
    attach = add_dra if isinstance(config, DRAConfig) else add_adapter
    return attach(model, config, gen(seed))


@torch.no_grad()
def logits(model, data):
    return model.get_logits(*data)[0]


def train(model, data, steps=3, lr=.05):
    model.train()
    opt = torch.optim.SGD(dra_parameters(model), lr=lr, momentum=.9)
    for step in range(steps):
        set_step(model, (5, step))
        opt.zero_grad()
        loss = F.cross_entropy(model.get_logits(*data)[0], torch.arange(4))
        (loss+regularization(model)).backward()
        opt.step()
    return model.eval()


# masks and orders, random sizes

def masked_by_sorting(x1, t, c, ratios, rescale):
    "Eqs. 14 to 16 as printed: sort, mask group by group, restore."
    B, N, r = x1.shape
    kept, out = kept_channels(ratios, r), torch.zeros_like(x1)
    for b in range(B):
        start = 0
        for size, e, k in zip(group_sizes(N, len(ratios)), ratios, kept):
            m = torch.zeros(r)
            m[c[b, :k]] = 1/e if rescale == 'inverse_ratio' else r/max(k, 1)
            members = t[b, start:start+size]
            out[b, members] = x1[b, members]*m
            start += size
    return out


@pytest.mark.parametrize('rescale', ['inverse_ratio', 'inverse_kept'])
@pytest.mark.parametrize('seed', range(40))
def test_mask_is_sort_mask_restore(seed, rescale):
    rng = random.Random(seed)
    B, N, r, K = rng.randint(1, 4), rng.randint(1, 80), rng.randint(1, 64), rng.randint(1, 9)
    ratios = tuple(rng.randint(1, 100)/100 for _ in range(K))
    x1 = torch.randn(B, N, r, generator=gen(seed))
    t, c = (descending_order(gumbel_noise((B, n), gen(seed+n))) for n in (N, r))
    expected = masked_by_sorting(x1, t, c, ratios, rescale)
    assert torch.equal(x1*rank_mask(t, c, ratios, rescale), expected)


@pytest.mark.parametrize('seed', range(20))
def test_counts_equal_cutting_the_padding(seed):
    rng = random.Random(seed)
    N, r, K = rng.randint(2, 40), rng.randint(2, 40), rng.randint(1, 6)
    ratios, n = tuple(rng.randint(1, 10)/10 for _ in range(K)), rng.randint(1, N)
    scores = torch.randn(1, N, generator=gen(seed))
    scores[:, n:] = -torch.inf
    t = descending_order(scores)
    c = descending_order(torch.randn(1, r, generator=gen(seed+1)))
    mask = rank_mask(t, c, ratios, counts=torch.tensor([n]))
    assert torch.equal(mask[:, :n], rank_mask(t[:, :n], c, ratios))
    assert (mask[:, n:] == 1).all()


@pytest.mark.parametrize('shape', [(1,), (7,), (3, 1), (2, 3, 11)])
def test_places_invert_orders(shape):
    order = descending_order(torch.randn(shape, generator=gen(0)))
    assert torch.equal(order.gather(-1, places(order)), torch.arange(shape[-1]).expand(shape))


@pytest.mark.parametrize('noise', ['gumbel', 'log-gumbel', 'none'])
@pytest.mark.parametrize('order', ['hard', 'soft-sort'])
@pytest.mark.parametrize('more', [
    dict(), dict(rescale='inverse_kept', attention_scale='r'),
    dict(reg_reduction='mean', outer_relu=False), dict(init='zero_up', outer_relu=False)])
def test_ratios_of_one_change_nothing(noise, order, more):
    config = DRAConfig(rank=7, ratios=(1, 1, 1), noise=noise, order=order, **more)
    m, x = DRA(20, config, gen(0)), torch.randn(3, 11, 20, generator=gen(1))
    assert_close(m.train()(x), m.eval()(x))
    m.train()(x)
    assert m.reg.abs() < 1e-6


def assert_finite_gradients(m):
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize('order', ['hard', 'soft-sort'])
@pytest.mark.parametrize('n', [1, 2, 3, 50])
def test_any_number_of_tokens_from_two(n, order):
    m = DRA(20, DRAConfig(rank=7, order=order, ratios=(1., .8, .6, .4)), gen(0)).train()
    x = torch.randn(2, n, 20, generator=gen(1))
    if n < 2:
        with pytest.raises(ValueError):
            m(x)
        return
    (m(x).sum()+m.reg).backward()
    assert_finite_gradients(m)


def test_equal_tokens_give_finite_gradients():
    m = DRA(20, DRAConfig(rank=7, order='soft-sort', noise='none'), gen(0)).train()
    (m(torch.ones(2, 9, 20)).sum()+m.reg).backward()
    assert_finite_gradients(m)


# models

KINDS = {
    'CLIP': {},
    'CustomTextCLIP': dict(cls=CustomTextCLIP),
    'qk norm': dict(vision=dict(qk_norm=True)),
    'layer scale': dict(vision=dict(ls_init_value=.5)),
    'no causal mask': dict(cls=CustomTextCLIP, text=dict(no_causal_mask=True))}
CONFIGS = dict(paper=SMALL, recommended=BEST, adapter=PLAIN)
CASES = [('CLIP', place, config) for place in ('attention', 'mlp', 'block') for config in CONFIGS]
for kind in KINDS:
    if kind != 'CLIP':
        CASES += [(kind, 'attention', 'recommended'), (kind, 'block', 'paper'),
                  (kind, 'mlp', 'adapter')]


@pytest.mark.parametrize('kind, place, config', CASES)
def test_add_train_remove(kind, place, config, data):
    model, config = clip(**KINDS[kind]), CONFIGS[config]
    keys, before = list(model.state_dict()), logits(model, data)
    flags = [p.requires_grad for p in model.parameters()]
    frozen = {k: v.clone() for k, v in model.state_dict().items()}
    add(model, replace(config, place=place))
    moved = (logits(model, data)-before).abs().max()
    assert 0 < moved < 20*config.scale*before.abs().max()             # what the scale explains
    train(model, data)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in frozen.items())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for m in adapters(model).values():
        for name, p in m.named_parameters():
            assert (p.grad is None) == (name.split('.')[0] in ('W_t', 'W_c'))
        m.enabled = False
    assert torch.equal(logits(model, data), before)
    remove_dra(model)
    assert list(model.state_dict()) == keys
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(logits(model, data), before)
    add(model, config)                                                # and once more
    assert len(adapters(model)) == 4


def test_flags_set_by_the_user_come_back():
    model = clip()
    model.visual.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    remove_dra(add(model, SMALL))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


@pytest.mark.parametrize('tower', ['image', 'text'])
def test_one_tower(tower, data):
    model = add(clip(), replace(SMALL, towers=(tower,)))
    assert {m.tower for m in adapters(model).values()} == {tower}
    train(model, data)
    assert len(adapters(model)) == 2


@pytest.mark.parametrize('name, why', [
    ('ViT-B-16-SigLIP', 'TimmModel'), ('RN50-quickgelu', 'ModifiedResNet'),
    ('coca_ViT-B-32', 'class token')])
def test_what_fit_cannot_run_is_refused_at_once(name, why):
    "With the line that `fit` would give at its first step."
    with torch.device('meta'):
        model = open_clip.create_model(name, device='meta')
    with pytest.raises(ValueError) as later:
        image_tower(model)
        text_tower(model)
    for attach, config in ((add_dra, SMALL), (add_adapter, PLAIN)):
        with pytest.raises(ValueError, match=f'^model: .*{why}') as e:
            attach(model, config)
        assert str(e.value) == str(later.value)
        assert not adapters(model) and all(p.requires_grad for p in model.parameters())


def test_copies_are_independent(data):
    model = train(add(clip(), BEST), data)
    other = copy.deepcopy(model.train())
    assert all(m.reg is None for m in adapters(other).values())
    pairs = zip(adapters(model).values(), adapters(other).values())
    assert all(a is not b for a, b in pairs)
    before = logits(model.eval(), data)
    assert torch.equal(logits(other.eval(), data), before)
    with torch.no_grad():
        for p in dra_parameters(other):
            p.add_(.1)
    assert torch.equal(logits(model, data), before)
    assert not torch.equal(logits(other, data), before)
    assert torch.equal(logits(remove_dra(other), data), logits(clip(), data))
    assert len(adapters(model)) == 4


def test_state_dict_carries_the_adapters(data):
    model = train(add(clip(), BEST), data)
    other = add(clip(seed=9), BEST, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, data), logits(model, data))


@pytest.mark.parametrize('config', [SMALL, BEST])
def test_autocast(config, data):
    "bfloat16 keeps the update and the gradients near those of single precision."
    model = add(clip(), replace(config, noise='none', scale=.1)).train()

    def run(on):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=on):
            out, reg = model.get_logits(*data)[0], regularization(model)
        (F.cross_entropy(out.float(), torch.arange(4))+reg).backward()
        grads = [p.grad.flatten() for p in dra_parameters(model) if p.grad is not None]
        return out.float().detach(), reg.detach(), torch.cat(grads)

    (full, reg, grad), (half, reg_half, grad_half) = run(False), run(True)
    assert_close(half, full, atol=.05*full.abs().max().item(), rtol=0)
    assert reg_half.dtype == torch.float32
    assert_close(reg_half, reg, rtol=.3, atol=0)                      # a few tokens change groups
    assert torch.cosine_similarity(grad, grad_half, 0) > .9
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert model.eval().get_logits(*data)[0].isfinite().all()


def test_half_precision_backbone(data):
    model = add(clip().to(torch.bfloat16), BEST)
    assert {p.dtype for p in dra_parameters(model)} == {torch.float32}
    assert model.encode_image(data[0].to(torch.bfloat16)).dtype == torch.bfloat16


def test_same_seeds_same_training(data):
    a, b = (train(add(clip(), SMALL), data) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(dra_parameters(a), dra_parameters(b)))


def test_soft_order_trains_the_scores(data):
    model = train(add(clip(), replace(BEST, order='soft-sort')), data)
    for m in adapters(model).values():
        assert m.W_t.weight.grad.abs().max() > 0 and m.W_c.weight.grad.abs().max() > 0


def test_lambda_zero_skips_the_regularizer(data):
    model = add(clip(), replace(SMALL, lambda_text=0., lambda_image=.5)).train()
    model.get_logits(*data)
    assert {m.tower for m in adapters(model).values() if m.reg is not None} == {'image'}
    image = sum(m.reg for m in adapters(model).values() if m.tower == 'image')
    assert_close(regularization(model), .5*image)
    assert regularization(add(clip(), PLAIN)) == 0


def test_padding_needs_its_mask(data):
    model, tokens = add(clip(), replace(SMALL, padding='real')), data[1]
    logits(model, data)                                               # not at test time
    with pytest.raises(ValueError, match='set_valid'):
        model.train().encode_text(tokens)
    with set_valid(model, real_tokens(tokens)):
        model.encode_text(tokens)
    with set_valid(model, real_tokens(tokens)[:2]):
        with pytest.raises(ValueError, match='padding_mask'):
            model.encode_text(tokens)
    assert all(m.padding_mask is None for m in adapters(model).values())


def test_recording(data):
    model = add(clip(), BEST)
    with recording(model) as seen:
        logits(model, data)
    assert {name: len(notes) for name, notes in seen.items()} == dict.fromkeys(adapters(model), 1)
    assert all(m.record is None for m in adapters(model).values())
    for note, in seen.values():
        ranks, want = note['ranks'], []
        for size, kept in zip(group_sizes(ranks.shape[1], 4), kept_channels(BEST.ratios, 8)):
            want += [kept]*size
        order = descending_order(note['token_scores'])
        assert ranks.gather(1, order).tolist() == [want]*len(ranks)


# files

@pytest.mark.parametrize('config', [
    SMALL, BEST, PLAIN, replace(BEST, towers=('text',), place='block')])
def test_round_trip(config, data, tmp_path):
    model, folder = train(add(clip(), config), data), tmp_path/'a'/'b'
    save_dra(model, folder)
    loaded = load_dra(clip(), folder)
    assert torch.equal(logits(loaded, data), logits(model, data))
    assert {m.config for m in adapters(loaded).values()} == {config}
    kinds = {type(m) for m in adapters(model).values()}
    assert {type(m) for m in adapters(loaded).values()} == kinds
    save_dra(loaded, folder)                                          # over itself
    assert [p.name for p in folder.iterdir()] == ['weights.safetensors']


def test_a_file_of_one_kind_of_clip_fits_the_other(data, tmp_path):
    model = train(add(clip(), BEST), data)
    save_dra(model, tmp_path)
    other = load_dra(clip(CustomTextCLIP), tmp_path)
    pairs = zip(dra_parameters(model), dra_parameters(other))
    assert all(torch.equal(p, q) for p, q in pairs)


def refused(model, folder, match):
    "Loading fails in one line, and leaves the model as it was."
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=match) as e:
        load_dra(model, folder)
    assert '\n' not in str(e.value) and list(model.state_dict()) == before


def test_weights_that_do_not_fit(tmp_path):
    refused(clip(), tmp_path, 'no such file')
    save_dra(add(clip(), SMALL), tmp_path)
    wider = clip(vision=dict(width=64, head_width=16))
    refused(wider, tmp_path, r'image.3.W_d.weight of shape \(8, 48\), needed is \(8, 64\)')
    refused(clip(vision=dict(layers=5)), tmp_path, 'image.5')
    with pytest.raises(ValueError, match='already carries'):
        load_dra(add(clip(), SMALL), tmp_path)


def test_settings_that_cannot_be_loaded(tmp_path):
    save_dra(add(clip(), SMALL), tmp_path)
    path = tmp_path/'weights.safetensors'
    tensors, metadata = read_tensors(path)
    facts = metadata['dra_nb']

    def other(**settings):
        return dict(facts, config={**facts['config'], **settings})

    for bad, match in ((dict(facts, method='lora'), 'holds no adapters'),
                       (dict(facts, config=None), 'holds no settings'),
                       ([1], 'holds no adapters'),
                       (other(ratios=['1/0']), 'not allowed'),
                       (other(rank=10**12), 'not allowed'),
                       (other(towers=None), 'not allowed')):
        write_tensors(path, tensors, dict(dra_nb=bad))
        refused(clip(), tmp_path, match)
    save_file(tensors, path, metadata=dict(dra_nb='['*200_000))
    refused(clip(), tmp_path, 'nested too deeply')


def test_tensors_that_cannot_be_loaded(tmp_path):
    save_dra(add(clip(), SMALL), tmp_path)
    path = tmp_path/'weights.safetensors'
    tensors, metadata = read_tensors(path)
    name = next(iter(tensors))
    facts = dict(dra_nb=json.dumps(metadata['dra_nb']))
    for value in (float('nan'), float('inf')):
        wrong = {**tensors, name: torch.full_like(tensors[name], value)}
        with pytest.raises(ValueError, match='not finite'):
            write_tensors(path, wrong, metadata)
        save_file(wrong, path, metadata=facts)
        refused(clip(), tmp_path, f'tensor {name} holds values that are not finite')
    for kind in (torch.int64, torch.float8_e4m3fn):
        save_file({**tensors, name: tensors[name].to(kind)}, path, metadata=facts)
        refused(clip(), tmp_path, f'tensor {name} is ')
    path.write_bytes(b'\x00'*100)
    refused(clip(), tmp_path, 'cannot be read')


def test_files_are_readable_for_others(tmp_path):
    "With the permissions of the user's umask, not of the library that wrote them."
    (tmp_path/'plain').touch()
    save_dra(add(clip(), SMALL), tmp_path/'w')
    written = tmp_path/'w'/'weights.safetensors'
    assert written.stat().st_mode == (tmp_path/'plain').stat().st_mode


def test_compiled_tower_keeps_its_gradient():
    "torch.compile must see the modules beside the blocks."
    def grads(compiled):
        torch._dynamo.reset()
        model = add(clip(), BEST).train()
        set_step(model, (1, 0))
        tower = torch.compile(model.visual, backend='eager') if compiled else model.visual
        y = tower(torch.randn(2, 3, 16, 16, generator=gen(1)))
        if y.requires_grad:
            (y.square().mean()+regularization(model)).backward()
        return [p.grad for p in dra_parameters(model)]

    found = grads(False)
    assert any(p is not None for p in found)
    for p, q in zip(found, grads(True)):
        assert (p is None) == (q is None)
        if p is not None:
            assert_close(p, q, atol=1e-6, rtol=1e-4)


# refusals

@pytest.mark.parametrize('settings, match', [
    (dict(ratios=(1., 0.)), r'\(0,1\]'), (dict(ratios=(1.5,)), r'\(0,1\]'),
    (dict(ratios=()), r'\(0,1\]'), (dict(ratios=.5), r'\(0,1\]'), (dict(ratios=('a',)), r'\(0,1\]'),
    (dict(rank=2), 'allowed ratios from 1/2'), (dict(rank=0), 'rank'), (dict(rank=2.5), 'rank'),
    (dict(scale=-1), 'scale'), (dict(scale=float('nan')), 'scale'), (dict(start=0), 'start'),
    (dict(place='head'), 'place'), (dict(towers=('audio',)), 'towers'), (dict(towers=()), 'towers'),
    (dict(noise='normal'), 'noise'), (dict(order='neural'), 'order'),
    (dict(gradient='big'), 'gradient'), (dict(temperature=-.1), 'temperature'),
    (dict(softness=0.), 'softness'), (dict(reg_reduction='max'), 'reg_reduction'),
    (dict(lambda_text=-1.), 'lambda_text'), (dict(padding='some'), 'padding'),
    (dict(init='zero_up'), 'never learns'), (dict(outer_relu=1), 'outer_relu')])
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match) as e:
        DRAConfig(**settings)
    assert '\n' not in str(e.value)
    assert str(e.value).split(':')[0] in [*settings, 'ratios']


CONTROL = ControlConfig(**asdict(SMALL))


def test_other_kinds_of_dra_are_not_saved_as_dra(tmp_path):
    "Their file would say nothing of their sources, and be read as plain DRA."
    method = build_method('dra-control', clip(), config=CONTROL)
    with pytest.raises(ValueError, match='got one with ControlledDRA, allowed .* save_method'):
        save_dra(method.model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_models():
    resnet = clip(vision=dict(layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None))
    late, shallow_text = replace(SMALL, start=5), clip(vision=dict(layers=6))
    for model, config, match in (
            (resnet, SMALL, 'ModifiedResNet'),
            (clip(), late, 'start: got 5, allowed 1 to 4'),
            (torch.nn.Linear(2, 2), SMALL, 'got Linear, allowed'),
            (shallow_text, late, 'blocks of the text encoder')):
        with pytest.raises(ValueError, match=match):
            add_dra(model, config)
        assert not adapters(model) and all(p.requires_grad for p in model.parameters())
    model = clip()
    model.set_grad_checkpointing()
    for attach, model, config, match in (
            (add_adapter, add(clip(), SMALL), PLAIN, 'already carries'),
            (add_dra, clip(), PLAIN, 'DRAConfig'),
            (add_adapter, clip(), SMALL, 'AdapterConfig'),
            (add_dra, clip(), CONTROL, 'got ControlConfig, allowed DRAConfig; build_method'),
            (add_dra, model, SMALL, 'checkpointing')):
        with pytest.raises(ValueError, match=match):
            attach(model, config)


@pytest.mark.parametrize('name, image, text', [
    ('ViT-B-16', 768, 512), ('ViT-B-32-quickgelu', 768, 512), ('ViT-L-14', 1024, 768)])
def test_published_models(name, image, text):
    "Widths come from the model; 716,800 for ViT-B."
    config = open_clip.get_model_config(name)
    config['text_cfg']['vocab_size'] = 64
    with torch.device('meta'):
        model = add_dra(CLIP(**config))
    widths = {(m.tower, m.d) for m in adapters(model).values()}
    assert widths == {('image', image), ('text', text)}

    def count(width, blocks):
        ends = width*32+32 + 32*width+width
        return blocks*(ends + 3*(32*32+32))

    n = sum(p.numel() for p in dra_parameters(model))
    assert n == count(image, 20 if 'L' in name else 8)+count(text, 8)
    if name == 'ViT-B-16':
        assert n == 716_800
