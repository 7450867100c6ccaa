"What several test files need: tiny CLIPs with fixed weights, and a folder of images."
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from dra_nb.weights import GlyphClipConfig, build_glyph_clip, save_glyph_clip


def tiny_clip(layers=4, seed=0):
    "A CLIP of glyph-clip's kind, four blocks a tower, 32 pixels, random weights."
    torch.manual_seed(seed)
    shape = GlyphClipConfig(embed_dim=32, width=32, layers=layers, head_width=16, context=20,
                            image_size=32)
    return build_glyph_clip(shape).eval()


def save_tiny_clip(path, seed=0, words=1000, **shape):
    "The file of a smaller one, eight blocks a tower, that knows some words of the vocabulary."
    small = dict(embed_dim=16, width=16, layers=8, head_width=8, context=20, image_size=16)
    config = GlyphClipConfig(**{**small, **shape})
    torch.manual_seed(seed)
    facts = dict(config=dict(model=asdict(config)))
    return save_glyph_clip(build_glyph_clip(config), path, facts, torch.arange(words))


def save_images(folder, n=6, start=0, size=(48, 40)):
    "n random pictures as PNG files in a folder."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start+n):
        pixels = np.random.RandomState(i).randint(0, 255, (size[1], size[0], 3), dtype='uint8')
        Image.fromarray(pixels).save(folder/f'{i}.png')


def wait_for(condition, seconds=300, pause=.1):
    "Wait until something is so."
    until = time.monotonic()+seconds
    while not condition():
        assert time.monotonic() < until, 'waited in vain'
        time.sleep(pause)


@pytest.fixture
def own_images(tmp_path):
    "A folder of four classes with six pictures each."
    for k,name in enumerate(('cat', 'cow', 'dog', 'fox')):
        save_images(tmp_path/'own'/name, 6, 10*k)
    return tmp_path/'own'
