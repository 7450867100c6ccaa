"What a notebook cannot show well about pre-training: that no step waits for the device, that two seeds share nothing, and that the loss falls."
import json, math
from dataclasses import replace

import pytest, torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dra_nb import glyphs as G, pretraining as P
from dra_nb.clip import GlyphClipConfig, build_glyph_clip, glyph_clip_facts
from dra_nb.cli import main
from dra_nb.glyphs import compose_pretraining

TINY = P.PretrainConfig(model=GlyphClipConfig(embed_dim=32, width=32, layers=2, head_width=16), steps=60, batch=16, captions=2, warmup=5, words_every=0)

class NoAnswer(TorchDispatchMode):
    "Refuses operations that bring a number from the device to the program, or that need one to know their own size."
    banned = ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select', 'equal.default', 'is_nonzero', 'bincount', 'repeat_interleave')
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if any(b in str(f) for b in self.banned): raise AssertionError(f'{f} waits for the device')
        if 'index' in str(f) and any(t.dtype == torch.bool for t in (args[1] if isinstance(args[1], (list, tuple)) else ()) if torch.is_tensor(t)): raise AssertionError(f'{f} by a mask waits for the device')
        return f(*args, **(kwargs or {}))

@pytest.fixture(scope='module')
def step():
    torch.manual_seed(0)
    model = build_glyph_clip(TINY.model)
    return model, P._pair_step(model, TINY, 'cpu')

def test_mode_refuses():
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: float(x[0])):
        with pytest.raises(AssertionError, match='waits'), NoAnswer(): wait()

@pytest.mark.parametrize('at', (0, 59))                      # with half of the patches, and with all
def test_no_step_waits(step, at):
    "Forward, backward, clipping and averaging; the optimizers read their own step counters, which lie on the CPU here."
    model, step_fn = step
    ema = P._Mean(model, .9)
    with NoAnswer():
        loss, metrics = step_fn(at)
        model.zero_grad(set_to_none=True); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.); ema.update(at)
    assert all(torch.is_tensor(v) for v in metrics.values())

def test_no_step_of_words_waits():
    model = build_glyph_clip(TINY.model)
    n = len(P.corpus(TINY.seed))
    step_fn = P._word_step(model, TINY, F.normalize(torch.randn(n, 32), dim=-1), 16, 'cpu')
    with NoAnswer(): step_fn(3)[0].backward()

@pytest.mark.filterwarnings('ignore:CUDA is not available')
def test_step_on_a_pretended_gpu(monkeypatch):
    "Shapes and devices without numbers: with its tables on 'cuda', a step keeps to it; whatever asked for a number, or mixed devices, would fail."
    model = build_glyph_clip(TINY.model); reader = P._Reader(model.tokenizer, TINY.tokens, 'cpu')
    pairs, paint = P._pair_tables(TINY, model.tokenizer, reader), G._paint(torch.device('cpu'))
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = lambda t: torch.empty(t.shape, dtype=t.dtype, device='cuda')
        reader.before, reader.after, reader.device = there(reader.before), there(reader.after), 'cuda'
        pairs, paint = P._Pairs(*map(there, pairs)), tuple(map(there, paint))
        monkeypatch.setattr(G, '_paint', lambda device: paint)
        monkeypatch.setattr(P, '_Reader', lambda *a: reader); monkeypatch.setattr(P, '_pair_tables', lambda *a: pairs)
        model._apply(there)
        step_fn = P._pair_step(model, TINY, 'cuda')
        for at in (0, 59):
            loss, metrics = step_fn(at)
            assert {t.device.type for t in (loss, *metrics.values())} == {'cuda'}
        with pytest.raises(DataDependentOutputException): loss.item()                # the pretence would notice

def test_batch_in_parts():
    "An image depends on its own number, not on its neighbours."
    n, d = P._numbers(TINY, 2, 7, 300, 'cpu'), P.drawings_for_pretraining()[0][:300]
    whole = compose_pretraining(n, d)
    assert_close(torch.cat([compose_pretraining(a, b) for a, b in zip(n.split(77), d.split(77))]), whole, atol=1/255, rtol=0)
    assert torch.equal(n[100:200], P._numbers(TINY, 2, 22, 100, 'cpu'))            # running index 2,200 to 2,299 in both

def test_minutes_and_second_seed(tmp_path):
    "The number of steps follows from the time; it is kept on resuming, and a second seed gives a file that `bench` tells from the first."
    c = replace(TINY, steps=1, words_steps=2, words_batch=16, words_every=3)
    def run(folder, seed, **kw):
        n = len(P.corpus(seed))+len(P.used_tokens(build_glyph_clip(c.model), replace(c, seed=seed)))
        folder.mkdir(exist_ok=True); torch.save(F.normalize(torch.randn(n, 32), dim=-1), folder/'targets.pt')      # stands in for the sentence encoder
        return P.pretrain(folder, replace(c, seed=seed), **kw)
    one = run(tmp_path/'1', 1, minutes=.03); steps = glyph_clip_facts(one)['config']['steps']
    assert steps > 1 and glyph_clip_facts(run(tmp_path/'1', 1, minutes=5))['config']['steps'] == steps
    two = run(tmp_path/'2', 2)
    bench = lambda p: main(['bench', '--methods', 'zero-shot', '--datasets', 'plants', '--seeds', '1', '--shots', '1', '--workers', '1', '--device', 'cpu', '--pretrained', str(p), '--out', str(tmp_path/'r.jsonl')])
    assert bench(one) == bench(two) == bench(one) == 0
    keys = [json.loads(l)['key'] for l in (tmp_path/'r.jsonl').read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2

def test_seeds_and_stages_share_no_numbers():
    draws = [P._numbers(replace(TINY, seed=s), stage, step, 500, 'cpu') for s in (1, 2) for stage in (1, 2) for step in (0, 1)]
    assert len(torch.cat(draws).unique()) == 8*500

def test_loss_falls(monkeypatch):
    "Sixteen flags in their own colours, eighty steps: well below what guessing gives, ln 16, in the mean of the last ten."
    (d, k), a = P.drawings_for_pretraining(), P.artwork()
    flags = [i for i in k.unique().tolist() if a.classes[i]['dataset'] == 'flags'][:64:4]
    kept = torch.isin(k, torch.tensor(flags))
    monkeypatch.setattr(P, 'drawings_for_pretraining', lambda: (d[kept], k[kept]))
    torch.manual_seed(0)
    c = replace(TINY, model=replace(TINY.model, layers=1), steps=80, patch_dropout=0., text_lr=1., lr=1e-3, recolour=0., outline=0.)
    model = build_glyph_clip(c.model); step_fn = P._pair_step(model, c, 'cpu')
    opts, ema = P._optimizers(model, c), P._Mean(model, .9)
    losses = [P._update(s, c.steps, step_fn, model, opts, c, ema)[0].item() for s in range(c.steps)]
    assert sum(losses[-10:])/10 < .9*math.log(c.batch), losses

def test_large_batch():
    "More pairs than classes: the loss is finite, and guessing would cost the logarithm of what is left to choose from."
    c = replace(TINY, batch=2000)
    model = build_glyph_clip(c.model)
    reader = P._Reader(model.tokenizer, c.tokens, 'cpu'); pairs = P._pair_tables(c, model.tokenizer, reader)
    kinds = torch.arange(2000) % len(pairs.count)
    rest = torch.tensor([2000-n for n in (kinds.bincount()-1).tolist()])[kinds].double()
    assert_close(P._contrast(torch.zeros(2000, 2000), kinds).double(), rest.log().mean(), rtol=1e-5, atol=0)

def test_full_run_is_not_provisional(monkeypatch):
    model = build_glyph_clip(TINY.model)
    monkeypatch.setattr(P, 'matmul_rate', lambda device: 1e12); monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a card')
    facts = lambda device, steps: P._facts(model, replace(TINY, steps=steps, batch=1000), device, [dict(seconds=1.)], [dict(seconds=2.)]*5)
    assert facts('cpu', 10_000)['provisional'] and facts('cuda', 9_999)['provisional'] and not facts('cuda', 10_000)['provisional']
    assert facts('cuda', 10_000)['cost']['pairs_per_second'] == 5e6
