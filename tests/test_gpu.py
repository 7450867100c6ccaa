"Every method on a GPU: in fp32 it trains to what it trains to on the CPU, in bf16 it trains."
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from dra_nb.data import base_new, few_shot_split, load_dataset
from dra_nb.evaluation import accuracy
from dra_nb.methods import METHODS, build_method, load_method
from dra_nb.recipes import set_fields
from dra_nb import training
from dra_nb.training import Callback, fit
from dra_nb.weights import GlyphClipConfig, build_glyph_clip

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')]

def tiny_clip():
    "Random weights, and room for ProDA's long sentences."
    torch.manual_seed(0)
    return build_glyph_clip(GlyphClipConfig(embed_dim=32, width=32, layers=12, head_width=16,
                                            context=32, image_size=32)).eval()


@pytest.fixture(scope='module')
def halves():
    "A few shots of the base classes, and the new classes with test images only."
    base, new = base_new(few_shot_split(load_dataset('vehicles'), 1, 1))
    return base._replace(train=base.train[:4], test=base.test[::40]), new._replace(
        test=new.test[::40])


def build(name, device):
    "The method on a tiny CLIP, without chance: a GPU draws other random numbers than a CPU."
    config, _ = METHODS[name].recipe()
    changes = {}
    if isinstance(getattr(config, 'noise', None), str):
        changes['noise'] = 'none'
    if hasattr(config, 'dropout'):
        changes['dropout'] = 0.
    if changes:
        config = set_fields(config, changes)
    return build_method(name, tiny_clip().to(device), config=config)


def train(method, base, amp, chunk=None):
    "Three epochs in batches of two."
    recipe = method.own_recipe(dataset=base.name)
    recipe = replace(recipe, epochs=min(recipe.epochs, 3), batch_size=2, amp=amp)
    return fit(method, base, recipe, 1, bar=False, text_chunk=chunk)


@pytest.mark.parametrize('name', METHODS)
def test_fp32_as_on_the_cpu(name, halves):
    base, new = halves
    found = {}
    for device in ('cpu', 'cuda'):
        method = build(name, device)
        history = train(method, base, 'off')
        weights = {k: v.detach().cpu() for k,v in method.trained().items()}
        if name == 'lfa':       # few shots leave a part of its first matrix to the decomposition
            found[device] = [row['loss'] for row in history]
            method.remove()
            continue
        method.set_classes(new.classnames, method.template_for(new))
        pictures = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            logits = method.logits(pictures.to(device)).cpu()
        found[device] = [[row['loss'] for row in history], weights, logits]
        method.remove()
    assert_close(found['cuda'], found['cpu'], rtol=2e-3, atol=2e-4)


class Recorded(Callback):
    "Tests on other classes in the middle, and looks whether a step was recorded."
    def __init__(self, new):
        self.new = new

    def after_epoch(self, trainer):
        method, new = trainer.method, self.new
        template = method.template_for(new)
        accuracy(method, new.test, new.classnames, template, seen=False)

    def after_fit(self, trainer):
        self.found = trainer.recorded is not None


def history_and_weights(name, base, new, amp):
    "Of twelve steps with all random numbers, and whether one of them was recorded."
    config, _ = METHODS[name].recipe()
    method = build_method(name, tiny_clip().to('cuda'), config=config)
    recipe = replace(method.own_recipe(dataset=base.name), epochs=6, batch_size=2, amp=amp)
    recorded = Recorded(new)
    history = fit(method, base, recipe, 1, callbacks=[recorded], bar=False)
    weights = {k: v.detach().clone() for k,v in method.trained().items()}
    method.remove()
    return [row['loss'] for row in history], weights, recorded.found


@pytest.mark.parametrize('amp', ['off', 'bf16'])
@pytest.mark.parametrize('name', [n for n,m in METHODS.items() if m.recordable])
def test_recorded_steps_are_the_steps(name, amp, halves, monkeypatch):
    "One operation after the other or as a recording: the same losses and weights."
    base, new = halves
    *found, recorded = history_and_weights(name, base, new, amp)
    monkeypatch.setattr(training, 'STEPS_BEFORE_RECORDING', 10**6)
    *expected, other = history_and_weights(name, base, new, amp)
    assert recorded and not other
    assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('chunk', [None, 12])
@pytest.mark.parametrize('name', METHODS)
def test_bf16_trains_saves_and_loads(name, chunk, halves, tmp_path):
    base, new = halves
    clip = tiny_clip().to('cuda')
    method = build_method(name, clip)
    history = train(method, base, 'bf16', chunk)
    assert all(torch.isfinite(torch.tensor(row['loss'])) for row in history)
    found = accuracy(method, new.test, new.classnames, method.template_for(new), seen=False)
    if method.state():
        method.save(tmp_path, dict(classnames=base.classnames))
        method.remove()
        method = load_method(tmp_path, clip)
    template = method.template_for(new)
    assert accuracy(method, new.test, new.classnames, template, seen=False) == found
    method.remove()
