"""The explorer's controls without a browser: a widget's value is set, and the picture and its data follow."""
import io
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dra_nb.clip import GlyphClipConfig, build_glyph_clip
from dra_nb.data import load_dataset
from dra_nb.dra import DRAConfig, add_dra
from dra_nb.visualization import Explorer, _controls


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    clip = build_glyph_clip(GlyphClipConfig(embed_dim=32, width=48, layers=4, head_width=16, context=16, image_size=32)).eval()
    return add_dra(clip, replace(DRAConfig.recommended(), rank=8, start=3), torch.Generator().manual_seed(1))


@pytest.fixture
def explorer(model): return Explorer(model, ('vehicles', 'food'))


def size(png): return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize('key,value', [('dataset', 'food'), ('image', 30), ('block', 3), ('ratios', (1., .5)), ('noise', 'gumbel')])
def test_a_widget_changes_picture_and_data(explorer, key, value):
    pytest.importorskip('ipywidgets')
    widgets, picture = _controls(explorer)
    mask, png = explorer.mask, picture.value
    widgets[key].value = value
    assert explorer.chosen[key] == value
    assert not torch.equal(explorer.mask, mask) and picture.value != png
    assert picture.value == explorer.png() and size(png) == size(picture.value)


def test_seed_changes_noisy_draws_only(explorer):
    pytest.importorskip('ipywidgets')
    widgets, _ = _controls(explorer)
    mask = explorer.mask
    widgets['seed'].value = 5
    assert torch.equal(explorer.mask, mask)
    widgets['noise'].value = 'gumbel'
    mask = explorer.mask
    widgets['seed'].value = 6
    assert not torch.equal(explorer.mask, mask)


def test_another_set_starts_at_its_first_image(explorer):
    pytest.importorskip('ipywidgets')
    widgets, _ = _controls(explorer)
    widgets['image'].value = widgets['image'].max
    widgets['dataset'].value = 'food'
    assert (explorer.chosen['dataset'], explorer.chosen['image'], widgets['image'].value) == ('food', 0, 0)
    assert widgets['image'].max == len(load_dataset('food').test)-1
    widgets['image'].value = widgets['image'].max
    assert explorer.chosen['image'] == widgets['image'].max


def test_controls_hold_every_choice_and_the_picture(explorer):
    widgets = pytest.importorskip('ipywidgets')
    choices, picture = explorer.controls().children
    assert {w.description for box in choices.children for w in box.children} == set(explorer.chosen)
    assert isinstance(picture, widgets.Image) and picture.value == explorer.png()


def test_widgets_only_where_a_notebook_is_open(explorer, monkeypatch):
    pytest.importorskip('ipywidgets')
    monkeypatch.delenv('JPY_SESSION_NAME', raising=False)
    assert list(explorer._repr_mimebundle_()) == ['image/png']
    monkeypatch.setenv('JPY_SESSION_NAME', 'nbs/36_visualization.ipynb')
    shown = explorer._repr_mimebundle_()
    assert shown['image/png'] == explorer.png() and 'application/vnd.jupyter.widget-view+json' in shown


def test_without_ipywidgets(explorer, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ValueError, match=r"^explorer: 'ipywidgets' is not installed; .*\Z"): explorer.controls()
    monkeypatch.setenv('JPY_SESSION_NAME', 'nbs/36_visualization.ipynb')
    assert list(explorer._repr_mimebundle_()) == ['image/png']
