"""The explorer's controls without a browser: a widget's value is set; picture and data follow."""
import io
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dra_nb.data import load_dataset
from dra_nb.dra import DRAConfig, add_dra
from dra_nb.visualization import Explorer, ExplorerControls
from dra_nb.weights import GlyphClipConfig, build_glyph_clip

TINY = GlyphClipConfig(embed_dim=32, width=48, layers=4, head_width=16, context=16, image_size=32)
CHANGES = [('dataset', 'food'), ('image', 30), ('block', 3), ('ratios', (1., .5)),
           ('noise', 'gumbel')]


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    clip = build_glyph_clip(TINY).eval()
    config = replace(DRAConfig.recommended(), rank=8, start=3)
    return add_dra(clip, config, torch.Generator().manual_seed(1))


@pytest.fixture
def explorer(model):
    return Explorer(model, ('vehicles', 'food'))


@pytest.fixture
def controls(explorer):
    pytest.importorskip('ipywidgets')
    return ExplorerControls(explorer)


def size(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize('changes', [dict(seed='one'), dict(seed=2**64), dict(seed=1.5),
                                     dict(ratios=0), dict(image=10**9)])
def test_a_refused_choice_changes_nothing(explorer, changes):
    before, png = dict(vars(explorer)), explorer.png()
    with pytest.raises(ValueError, match=next(iter(changes))):
        explorer.choose(dataset='food', noise='gumbel', **changes)
    assert vars(explorer) == before and explorer.png() == png


def test_a_drawing_that_fails_changes_nothing(explorer, monkeypatch):
    before = dict(vars(explorer))

    def broken(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Explorer, 'draw', broken)
    with pytest.raises(KeyboardInterrupt):
        explorer.choose(dataset='food')
    assert all(vars(explorer)[name] is value for name,value in before.items())


@pytest.mark.parametrize('key, value', CHANGES)
def test_a_widget_changes_picture_and_data(explorer, controls, key, value):
    mask = explorer.mask
    png = controls.picture.value
    controls.widgets[key].value = value
    assert explorer.chosen[key] == value
    assert not torch.equal(explorer.mask, mask)
    assert controls.picture.value != png
    assert controls.picture.value == explorer.png()
    assert size(png) == size(controls.picture.value)


def test_seed_changes_noisy_draws_only(explorer, controls):
    mask = explorer.mask
    controls.widgets['seed'].value = 5
    assert torch.equal(explorer.mask, mask)
    controls.widgets['noise'].value = 'gumbel'
    mask = explorer.mask
    controls.widgets['seed'].value = 6
    assert not torch.equal(explorer.mask, mask)


def test_another_set_starts_at_its_first_image(explorer, controls):
    image = controls.widgets['image']
    image.value = image.max
    controls.widgets['dataset'].value = 'food'
    assert explorer.chosen['dataset'] == 'food'
    assert explorer.chosen['image'] == image.value == 0
    assert image.max == len(load_dataset('food').test)-1
    image.value = image.max
    assert explorer.chosen['image'] == image.max


def test_controls_hold_every_choice_and_the_picture(explorer):
    widgets = pytest.importorskip('ipywidgets')
    choices, picture = explorer.controls().children
    shown = {widget.description for box in choices.children for widget in box.children}
    assert shown == set(explorer.chosen)
    assert isinstance(picture, widgets.Image)
    assert picture.value == explorer.png()


def test_widgets_only_where_a_notebook_is_open(explorer, monkeypatch):
    pytest.importorskip('ipywidgets')
    monkeypatch.delenv('JPY_SESSION_NAME', raising=False)
    assert list(explorer._repr_mimebundle_()) == ['image/png']
    monkeypatch.setenv('JPY_SESSION_NAME', 'nbs/36_visualization.ipynb')
    shown = explorer._repr_mimebundle_()
    assert shown['image/png'] == explorer.png()
    assert 'application/vnd.jupyter.widget-view+json' in shown


def test_without_ipywidgets(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ValueError, match=r"^explorer: .*without 'ipywidgets', allowed .*\Z"):
        explorer.controls()
    monkeypatch.setenv('JPY_SESSION_NAME', 'nbs/36_visualization.ipynb')
    assert list(explorer._repr_mimebundle_()) == ['image/png']


@pytest.mark.parametrize('wrong, why', [
    (dict(block=1), 'block: got 1, allowed 3, 4'), (dict(dataset='cars'), "allowed 'vehicles'"),
    (dict(image=-1), 'image: got -1'), (dict(image=True), 'image: got True'),
    (dict(noise=None), 'noise: got None'), (dict(ratios=(2.,)), r'\(0,1\]'),
    (dict(colour=1), 'choose: got colour')])
def test_a_choice_that_cannot_be_changes_nothing(explorer, wrong, why):
    chosen = dict(explorer.chosen)
    png = explorer.png()
    with pytest.raises(ValueError, match=why):
        explorer.choose(**wrong)
    assert explorer.chosen == chosen
    assert explorer.png() == png
