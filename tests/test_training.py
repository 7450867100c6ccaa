"What the training page cannot show: a process that is really killed, and every kind of adapter."
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dra_nb.adapter import AdapterConfig
from dra_nb.attach import attached
from dra_nb.data import (
    Dataset, Item, base_new, few_shot, few_shot_split, load_dataset, load_folder)
from dra_nb.dra import DRAConfig, add_adapter, add_dra, dra_parameters
from dra_nb.methods import as_method, build_method
from dra_nb.training import Callback, TrainConfig, Trainer, TrainingDiverged, fit
from dra_nb.weights import GlyphClipConfig, build_glyph_clip

SCRIPT = '''
import os, signal, sys, torch
from dataclasses import replace
from dra_nb.weights import GlyphClipConfig, build_glyph_clip
from dra_nb.data import base_new, few_shot, load_dataset
from dra_nb.dra import DRAConfig, add_dra, dra_parameters
from dra_nb.training import Callback, TrainConfig, fit

torch.set_num_threads(1)
torch.manual_seed(0)
checkpoint, out, kill = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Kill(Callback):
    def after_step(self, loop):
        if loop.step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

shape = GlyphClipConfig(embed_dim=32, width=32, layers=3, head_width=16, context=16, image_size=32)
model = build_glyph_clip(shape).eval()
config = replace(DRAConfig.recommended(), rank=8, start=2)
add_dra(model, config, torch.Generator().manual_seed(1))
base, new = base_new(load_dataset('vehicles'))
shots = base._replace(train=few_shot(base.train, 3, seed=1))
history = fit(model, shots, TrainConfig(epochs=3), seed=1, callbacks=[Kill()],
              checkpoint=checkpoint if checkpoint != '-' else None, every=2, bar=False)
torch.save(dict(weights=[p.detach() for p in dra_parameters(model)], history=history), out)
'''
SHAPE = GlyphClipConfig(embed_dim=32, width=32, layers=3, head_width=16, context=16, image_size=32)
PLAIN = replace(AdapterConfig.recommended(), rank=8, start=2)
RANKED = replace(DRAConfig.recommended(), rank=8, start=2)


def run(checkpoint, out, kill=-1):
    words = [sys.executable, '-c', SCRIPT, str(checkpoint), str(out), str(kill)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)


def test_killed_run_resumes_to_the_same_bits(tmp_path):
    whole = run('-', tmp_path/'whole.pt')
    assert whole.returncode == 0, whole.stderr
    killed = run(tmp_path/'c.pt', tmp_path/'resumed.pt', kill=9)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path/'resumed.pt').exists()
    assert torch.load(tmp_path/'c.pt', weights_only=True)['step'] == 8
    resumed = run(tmp_path/'c.pt', tmp_path/'resumed.pt')
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path/f, weights_only=True) for f in ('whole.pt', 'resumed.pt'))
    assert a['history'] == b['history']
    assert all(torch.equal(p, q) for p, q in zip(a['weights'], b['weights']))
    assert [p.name for p in tmp_path.glob('.*')] == []        # no remains of unfinished files


def tiny(seed=0):
    torch.manual_seed(seed)
    return build_glyph_clip(SHAPE).eval()


def add(model, config, generator=None):
    attach = add_dra if isinstance(config, DRAConfig) else add_adapter
    return attach(model, config, generator)


@pytest.fixture(scope='module')
def shots():
    base, new = base_new(load_dataset('vehicles'))
    return base._replace(train=few_shot(base.train, 2, seed=1))


def test_nan_keeps_the_last_good_weights_and_the_checkpoint(tmp_path, shots):
    class Watch(Callback):
        good = None

        def after_step(self, trainer):
            if trainer.step == 4:
                self.good = [p.detach().clone() for p in trainer.trained.values()]

    model = add(tiny(), RANKED)
    method, watch = as_method(model), Watch()
    losses = method.losses

    def poisoned(images, labels):
        terms = losses(images, labels)
        return terms if watch.good is None else {**terms, 'ce': terms['ce']*float('nan')}

    method.losses = poisoned
    with pytest.raises(TrainingDiverged, match=r'at step 5 \(epoch 2\)') as e:
        fit(method, shots, TrainConfig(), callbacks=[watch], checkpoint=tmp_path/'c.pt', every=2,
            bar=False)
    assert e.value.step == 5
    assert all(torch.equal(p, q) for p, q in zip(dra_parameters(model), watch.good))
    assert torch.load(tmp_path/'c.pt', weights_only=True)['step'] == 4 and not model.training


def test_last_update_is_looked_at_too(shots):
    "The loss of the last step is fine, the weights after it are not."
    class Break(Callback):
        def after_step(self, trainer):
            if trainer.step == trainer.steps:
                next(iter(trainer.trained.values())).data.fill_(float('inf'))

    model = add(tiny(), PLAIN)
    with pytest.raises(TrainingDiverged, match='weights are no numbers'):
        fit(model, shots, TrainConfig(epochs=1), callbacks=[Break()], bar=False)
    assert all(p.isfinite().all() for p in dra_parameters(model))


def test_checkpoint_of_other_pictures_or_weights_is_refused(tmp_path, own_images):
    "A run is its settings, its seed, its pictures and the CLIP it started from."
    data = few_shot_split(load_folder(own_images), 2, 1)

    class Stop(Callback):
        def after_epoch(self, trainer):
            raise KeyboardInterrupt

    def run(seed=0, **kwargs):
        config = TrainConfig(epochs=2, batch_size=4)
        return fit(add(tiny(seed), PLAIN), data, config, checkpoint=tmp_path/'c.pt', bar=False,
                   **kwargs)

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Stop()], every=1)
    assert (tmp_path/'c.pt').exists()
    with pytest.raises(ValueError, match='or CLIP'):
        run(seed=1)
    other = Path(data.test[0].path).read_bytes()              # under the same name
    Path(data.train[0].path).write_bytes(other)
    with pytest.raises(ValueError, match='settings, data'):
        run()


def test_missing_image_is_found_before_the_first_step(own_images):
    data = few_shot_split(load_folder(own_images), 2, 1)
    os.unlink(data.train[-1].path)
    with pytest.raises(ValueError, match='are not there'):
        fit(add(tiny(), PLAIN), data, TrainConfig(epochs=1), bar=False)


KINDS = {
    'adapter': AdapterConfig.recommended(),
    'paper': DRAConfig.paper(),
    'recommended': DRAConfig.recommended(),
    'real-padding': replace(DRAConfig.recommended(), padding='real'),
    'soft-sort': replace(DRAConfig.recommended(), order='soft-sort'),
    'image-only': replace(DRAConfig.recommended(), towers=('image',)),
    'text-only': replace(AdapterConfig.recommended(), towers=('text',))}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('amp', ['off', 'bf16'])
def test_every_kind_trains_and_leaves_the_rest_alone(shots, kind, amp):
    model = tiny()
    frozen = {n: p.clone() for n, p in model.state_dict().items()}
    add(model, replace(KINDS[kind], rank=8, start=2))
    before = [p.detach().clone() for p in dra_parameters(model)]
    history = fit(model, shots, TrainConfig(epochs=1, amp=amp), bar=False)
    assert history[0]['loss'] > 0 and all(p.isfinite().all() for p in dra_parameters(model))
    assert any(not torch.equal(p, q) for p, q in zip(dra_parameters(model), before))
    assert all(torch.equal(model.state_dict()[n], p) for n, p in frozen.items())


def test_cutting_the_prompts_changes_no_step_where_it_is_exact(shots):
    def weights(cut, config):
        model = add(tiny(), config, torch.Generator().manual_seed(0))
        fit(model, shots, TrainConfig(epochs=1, amp='off', truncate_text=cut), bar=False)
        return torch.cat([p.detach().flatten() for p in dra_parameters(model)])

    whole = weights('never', PLAIN)
    torch.testing.assert_close(weights('exact', PLAIN), whole, atol=1e-6, rtol=1e-4)
    for reduction in ('mean', 'sum'):
        real = replace(RANKED, padding='real', noise='none', reg_reduction=reduction)
        whole = weights('never', real)
        torch.testing.assert_close(weights('exact', real), whole, atol=1e-6, rtol=1e-4)
    whole = weights('never', RANKED)
    assert torch.equal(weights('exact', RANKED), whole)       # padding is ranked: not cut
    assert not torch.equal(weights('always', RANKED), whole)


def test_batches_are_functions_of_seed_and_step(shots):
    def trainer():
        return Trainer(as_method(add(tiny(), PLAIN)), shots, TrainConfig(epochs=2), 1)

    one, two = trainer(), trainer()
    forward = []
    for one.step in range(one.steps):
        forward.append(one.batch())
    for two.step in reversed(range(two.steps)):
        x, y = two.batch()
        assert torch.equal(x, forward[two.step][0]) and torch.equal(y, forward[two.step][1])


@pytest.mark.parametrize('n', [4, 5, 10, 37, 47, 101, 397])
def test_base_new_of_any_size(n):
    names = [f'c{label}' for label in range(n)]
    items = []
    for label, name in enumerate(names):
        items += 2*[Item(f'{label}.jpg', label, name)]
    base, new = base_new(Dataset(items, items, items, names))
    assert len(base.classnames) == (n+1)//2 and base.classnames+new.classnames == names
    for half in (base, new):
        for item in half.train + half.val + half.test:
            assert half.classnames[item.label] == item.classname


@pytest.mark.parametrize('bad, words', [
    (dict(epochs=-1), 'epochs'), (dict(lr=0.), 'lr: got'), (dict(area=(.5, .1)), 'area: got'),
    (dict(amp='fp4'), 'amp: got'), (dict(truncate_text='maybe'), 'truncate_text: got')])
def test_bad_settings_are_named(bad, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**bad)


@pytest.mark.parametrize('name', ['lfa', 'tip-adapter-f', 'promptsrc', 'coop'])
def test_a_refused_checkpoint_changes_nothing(name, tmp_path, shots):
    "Neither what was learned nor the classes it was learned on."
    config, method = TrainConfig(epochs=1, batch_size=16), build_method(name, tiny())
    _, new = base_new(load_dataset('vehicles'))
    new = new._replace(train=few_shot(new.train, 1, seed=1))
    for trained_on in (None, shots.classnames):
        if trained_on:
            fit(method, shots, config, bar=False)
        before = {n: t.detach().clone() for n, t in method.state().items()}
        (tmp_path/'c.pt').write_bytes(b'broken')
        with pytest.raises(ValueError, match='cannot be read as one'):
            fit(method, new, config, checkpoint=tmp_path/'c.pt', bar=False)
        assert fit(method, new, replace(config, epochs=0), bar=False) == []
        assert method.trained_on == trained_on
        assert method.trained_set == (shots.name if trained_on else None)
        assert method.state().keys() == before.keys() and not method.training
        assert all(torch.equal(t, before[n]) for n, t in method.state().items())
    fit(method, new, config, bar=False)
    assert method.trained_on == new.classnames


def test_what_a_gpu_may_record(shots):
    "Batches of one size, after the first steps, where a method says that all steps are alike."
    method = as_method(add(tiny(), RANKED))
    trainer = Trainer(method, shots, TrainConfig(batch_size=4))
    whole = torch.zeros(4, 3, 32, 32)
    trainer.unrecorded = 3
    assert not trainer.can_record(whole)                     # on a CPU nothing is recorded
    trainer.device = torch.device('cuda')
    assert trainer.can_record(whole) and not trainer.can_record(whole[:3])
    module = next(iter(attached(method.model).values()))
    module.recordable = False
    assert not trainer.can_record(whole)
    module.recordable = True
    method.text_chunk = 2
    assert not trainer.can_record(whole)
    method.text_chunk = None
    with torch.autograd.set_detect_anomaly(True):
        assert not trainer.can_record(whole)
    trainer.unrecorded = 2
    assert not trainer.can_record(whole)
