"""The control of page 38 and the search of 3b: every source ranks as it says, and nothing else
differs between variants."""
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from conftest import tiny_clip
from dra_nb.attach import attached, set_step
from dra_nb.bench import search
from dra_nb.bench.importance import (CENTRE, COMPARISONS, VARIANTS, answer, control_runs,
                                     first_batch, foreground_auc)
from dra_nb.bench.search import SEARCHED, search_start
from dra_nb.clip import real_tokens
from dra_nb.data import base_new, few_shot, load_dataset
from dra_nb.data.images import TrainingImages
from dra_nb.dra import DRAConfig
from dra_nb.methods import build_method, find_method, load_method
from dra_nb.methods.control import (ControlConfig, foreground_pictures, patch_shares, ranked_by,
                                    token_kinds)
from dra_nb.recipes import TrainConfig
from dra_nb.training import Callback, Trainer, fit

SETS = 'vehicles', 'food'
RANK = dict(rank=8, start=2)


def settings(name):
    "Settings of a variant, small enough for a tiny CLIP."
    changes = {**CENTRE, **VARIANTS[name], **RANK}
    return replace(ControlConfig.recommended(), **changes)


def shots(name, n=32):
    "Up to n images of the base classes of a set."
    base, _ = base_new(load_dataset(name))
    drawn = few_shot(base.train, 4, seed=1)[:n]
    return base._replace(train=drawn)


@pytest.fixture(scope='module')
def data():
    return {name: shots(name) for name in SETS}


def first_run(method, dataset, epochs=1, batch_size=32):
    "A run at its first step, classes set and masks made."
    recipe = TrainConfig.for_dataset(dataset.name, epochs=epochs, batch_size=batch_size, lr=.01)
    trainer = Trainer(method.train(), dataset, recipe, seed=1)
    method.set_classes(dataset.classnames, dataset.template)
    method.prepare(trainer)
    return trainer


def copies(method):
    return {n: p.detach().clone() for n,p in method.state().items()}


# ---------------------------------------------------------------- everything else is equal

@pytest.mark.parametrize('name', VARIANTS)
def test_same_first_weights_and_places(name):
    "State, names, scale and first block at step 0 are those of DRA, to the bit."
    method = build_method('dra-control', tiny_clip(), 1, settings(name))
    config = replace(DRAConfig.recommended(), **RANK, noise='none', temperature=1.)
    dra = build_method('dra', tiny_clip(), 1, config)
    mine, theirs = copies(method), copies(dra)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert [m.reg_weight for m in attached(method.model).values()] == [1.]*6
    for m, other in zip(attached(method.model).values(), attached(dra.model).values()):
        own = {k: v for k,v in vars(m.config).items() if k not in ('ratios', 'order')}
        assert own.items() <= vars(other.config).items()


@pytest.mark.parametrize('name', VARIANTS)
def test_same_function_at_test_time(name):
    "No source is used in testing: the untrained modules answer alike, to the bit."
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = []
    for variant in ('eq10', name):
        method = build_method('dra-control', tiny_clip(), 1, settings(variant)).eval()
        with torch.no_grad(), method.testing(['cat', 'red car'], 'a photo of a {}.'):
            answers.append(method.logits(images))
    assert torch.equal(*answers)


def test_runs_differ_in_sources_alone():
    runs = control_runs(sets=['food'], seeds=(1, 2), device='cpu')
    assert len({run.key for run in runs}) == 2*len(VARIANTS)
    names = list(VARIANTS)
    for k,run in enumerate(runs):
        facts = {**run.facts(), 'config': None}
        assert facts == {**runs[k%2].facts(), 'config': None}
        sources = {k: run.config[k] for k in CENTRE}
        assert sources == {**CENTRE, **VARIANTS[names[k//2]]}
        others = {k: v for k,v in run.config.items() if k not in CENTRE}
        assert others == {k: v for k,v in runs[0].config.items() if k not in CENTRE}
        assert run.config['noise'] == 'none'
    assert {name for pair in COMPARISONS for name in pair} <= set(VARIANTS)


def test_search_gives_both_the_same_points():
    points = {}
    for method in SEARCHED:
        runs = search_start(method, device='cpu')
        points[method] = {(r.dataset, r.train['lr'], r.config['scale']) for r in runs}
        assert len(points[method]) == len(runs)
    assert points['adapter'] == points['dra']
    assert len(search.OPTIONS['adapter']) == len(search.OPTIONS['dra'])


# ---------------------------------------------------------------- sources rank as they say

def test_mask_and_picture_fit_to_the_pixel():
    "A picture painted with its own mask is cropped into what `crop_alike` makes of the mask."
    items = shots('vehicles').train
    recipe = TrainConfig.for_dataset('vehicles', area=(.2, 1.), flip=.5)
    images = TrainingImages(items, 64, 1, recipe)
    masks = foreground_pictures(items, 64)
    images.drawings = {row: mask.expand(3, -1, -1) for row,mask in enumerate(masks)}
    rows = [3, 30, 0, 17]
    whole = masks[rows]/255
    for epoch in range(3):
        cropped = images.crop_alike(epoch, rows, masks[rows])
        assert torch.equal(images.batch(epoch, rows)[:, :1], cropped)
        assert all(not torch.equal(a, b) for a,b in zip(cropped, whole))      # they were cropped


AUC = {'mask': (1., 1.), 'mask reversed': (0., 0.), 'chance': (.4, .6), 'eq10': (0., 1.),
       'other mask': (.2, .9), 'class token': (0., 1.)}


@pytest.mark.parametrize('name', AUC)
def test_image_sources(name, data):
    "How often a foreground patch outranks one of the background; the class token comes first."
    least, most = AUC[name]
    recipe = TrainConfig.for_dataset('vehicles', batch_size=32)
    _, shares, notes = first_batch(tiny_clip(), data['vehicles'], recipe, settings(name))
    front = shares >= .5
    clear = front.any(1) & ~front.all(1)
    assert clear.sum() > 5
    for block, found in notes.items():
        if block.startswith('image'):
            scores = found[-1]['token_scores']
            assert (scores.argmax(1) == 0).all() and (found[-1]['ranks'][:, 0] == 8).all()
            auc = foreground_auc(scores[clear, 1:], front[clear]).mean()
            assert least-1e-6 <= auc <= most+1e-6, (block, auc)


def test_chance_is_the_same_in_all_blocks_and_new_in_each_step(data):
    "As the mask's order is."
    method = build_method('dra-control', tiny_clip(), 1, settings('both: chance'))
    trainer = first_run(method, data['food'], batch_size=8)
    trainer.batch()
    one = method.image_importance(trainer), method.text_importance(trainer)
    again = method.image_importance(trainer), method.text_importance(trainer)
    trainer.step = 1
    two = method.image_importance(trainer), method.text_importance(trainer)
    for a, b, c in zip(one, again, two):
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert one[0].shape == (8, 17) and one[1].shape == method.prompts.tokens.shape


def test_ties_are_broken_by_chance_and_by_nothing_larger(data):
    method = build_method('dra-control', tiny_clip(), 1, settings('mask'))
    trainer = first_run(method, data['food'])
    trainer.batch()
    told = method.image_importance(trainer)[:, 1:]
    rows = trainer.order[:32]
    shares = patch_shares(trainer.images.crop_alike(0, rows, method.masks[rows]), 4)
    assert len(told.flatten().unique()) > .95*told.numel() > len(shares.flatten().unique())
    assert_close(told, shares, atol=2e-5, rtol=0)
    ahead = shares[:, :, None] > shares[:, None]+1e-4
    assert (told[:, :, None] > told[:, None])[ahead].all()


@pytest.mark.parametrize('name, order', [('text: name', [2, 1, 0]),
                                         ('text: name reversed', [0, 1, 2])])
def test_text_sources(name, order, data):
    "The end of the text first; then the kinds in order."
    recipe = TrainConfig.for_dataset('food', batch_size=32)
    model = tiny_clip()
    _, _, notes = first_batch(model, data['food'], recipe, settings(name))
    method = build_method('dra-control', model, 1, settings(name))
    method.train().set_classes(data['food'].classnames, data['food'].template)
    kinds, tokens = method.kinds, method.prompts.tokens
    end = real_tokens(tokens).sum(1)-1
    for block, found in notes.items():
        if block.startswith('text'):
            scores = found[-1]['token_scores'].clone()
            assert torch.equal(scores.argmax(1), end)
            scores.scatter_(1, end[:, None], torch.nan)
            for high, low in zip(order, order[1:]):
                for row, kind in zip(scores, kinds):
                    above, below = row[kind == high], row[kind == low]
                    above, below = above[~above.isnan()], below[~below.isnan()]
                    assert above.min() > below.max(), block
    method.remove()


def test_kinds_of_all_prompts_of_the_benchmark():
    "The name's tokens are those of the name alone, for every class of two sets."
    model = tiny_clip()
    for name in SETS:
        dataset = load_dataset(name)
        texts = [dataset.template.replace('{}', n.replace('_', ' ')) for n in dataset.classnames]
        tokens = model.tokenizer(texts)
        kinds = token_kinds(model, tokens, dataset.template)
        alone = model.tokenizer([n.replace('_', ' ') for n in dataset.classnames])
        for row, kind, word in zip(tokens, kinds, alone):
            assert row[kind == 2].tolist() == word[1:int(word.argmax())].tolist()


def test_chunks_of_prompts_get_their_own_rows(data):
    "Importance and chance do not depend on how many prompts are encoded at a time."
    losses = []
    for size in (None, 3):
        config = replace(settings('both: chance'), channels='chance')
        method = build_method('dra-control', tiny_clip().double(), 1, config)
        trainer = first_run(method, data['food'])
        method.text_chunk = size
        images, labels = trainer.batch()
        set_step(method.model, (1, 0))
        told = method.image_importance(trainer), method.text_importance(trainer)
        with ranked_by(method.model, *told):
            losses.append(sum(method.losses(images.double(), labels).values()))
    assert_close(*losses)


# ---------------------------------------------------------------- they train

@pytest.mark.parametrize('name', VARIANTS)
def test_a_step_of_every_variant(name, data):
    "32 images of two sets: losses and weights are numbers, and the right matrices learn."
    for dataset in data.values():
        method = build_method('dra-control', tiny_clip(), 1, settings(name))
        before = copies(method)
        trainer = first_run(method, dataset)
        trainer.one_step()
        trainer.look()
        now = copies(method)
        moved = {n.split('.')[2] for n in now if not torch.equal(now[n], before[n])}
        learned = {'W_d', 'W_p', 'W_u'}
        learned |= {'W_t'} if 'learned' == method.config.tokens else set()
        learned |= {'W_c'} if 'learned' == method.config.channels else set()
        assert moved == learned
        assert all(m.importance is None for m in attached(method.model).values())


OPTIONS = {'host': dict(scale_unit='host'), 'identity': dict(middle='identity'),
           'no W_p': dict(middle='none'), 'pull': dict(pull=1.),
           'pull alone': dict(pull=1., lambda_text=0., lambda_image=0.),
           'average': dict(average=True), 'zero_up': dict(init='zero_up', outer_relu=False),
           'plus': dict(tokens='class-token', text='name', read_token='first', pull=1.,
                        average=True, padding='real', scale_unit='host')}


@pytest.mark.parametrize('name', OPTIONS)
def test_options_train_and_come_back_from_a_file(name, data, tmp_path):
    config = replace(settings('as printed'), **OPTIONS[name])
    dataset = data['food']
    recipe = TrainConfig.for_dataset('food', epochs=2, batch_size=16, lr=.01)
    method = build_method('dra-control', tiny_clip(), 1, config)
    history = fit(method, dataset, recipe, bar=False)
    assert all(torch.tensor(h['loss']).isfinite() for h in history)
    method.save(tmp_path)
    loaded = load_method(tmp_path, tiny_clip())
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = []
    for m in (method, loaded):
        with torch.no_grad(), m.testing(['cat', 'red car'], 'a photo of a {}.'):
            answers.append(m.logits(images))
    assert torch.equal(*answers) and loaded.config == config


def test_zero_up_begins_at_clip():
    config = replace(settings('as printed'), init='zero_up', outer_relu=False, scale_unit='host')
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method = build_method('dra-control', tiny_clip(), 1, config).eval()
    with torch.no_grad():
        assert_close(method.image_features(images), tiny_clip().encode_image(images))


@pytest.mark.parametrize('changes', [dict(tokens='mask', read_token='first'), dict(average=True)])
def test_a_run_that_was_stopped_ends_the_same(changes, data, tmp_path):
    "Chance, masks and means over epochs do not depend on where a run was cut."
    config = replace(settings('as printed'), **changes)
    recipe = TrainConfig.for_dataset('food', epochs=2, batch_size=16, lr=.01)

    class Stop(Callback):
        def after_step(self, trainer):
            if trainer.step == 3:
                raise KeyboardInterrupt

    whole = build_method('dra-control', tiny_clip(), 1, config)
    fit(whole, data['food'], recipe, bar=False)
    cut = build_method('dra-control', tiny_clip(), 1, config)
    path = tmp_path/'state.pt'
    with pytest.raises(KeyboardInterrupt):
        fit(cut, data['food'], recipe, callbacks=[Stop()], checkpoint=path, every=1, bar=False)
    again = build_method('dra-control', tiny_clip(), 1, config)
    fit(again, data['food'], recipe, checkpoint=path, bar=False)
    assert all(torch.equal(a, b) for a,b in zip(copies(whole).values(), copies(again).values()))


def test_photographs_have_no_mask(own_images):
    dataset = load_dataset(str(own_images))
    method = build_method('dra-control', tiny_clip(), 1, settings('mask'))
    with pytest.raises(ValueError, match='allowed are compositions of Glyphs') as e:
        fit(method, dataset, TrainConfig(epochs=1, batch_size=4), bar=False)
    assert '\n' not in str(e.value)


def test_without_records_there_is_no_answer():
    with pytest.raises(ValueError, match='records: got none that compare mask with chance'):
        answer([])


def test_presets():
    "DRA's, without noise; all else as DRA has it."
    for preset in ('likely', 'recommended'):
        _, found = find_method(f'dra-control-{preset}')
        assert found == preset
        control = find_method('dra-control')[0].recipe(preset=preset)
        dra = find_method('dra')[0].recipe(preset=preset)
        assert control[1] == dra[1]
        expected = replace(dra[0], noise='none', temperature=1.)
        assert control[0].of_tower('image') == control[0].of_tower('text') == expected
