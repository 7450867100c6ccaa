"The defaults of adapter and DRA on other CLIPs than glyph-clip: gentle at first, and in a step."
import open_clip
import pytest
import torch

from conftest import save_images
from dra_nb.clip import image_features, text_features
from dra_nb.data import load_folder
from dra_nb.data.images import TestImages, normalize
from dra_nb.methods import METHODS
from dra_nb.training import Trainer

NAME = 'ViT-B-16-quickgelu'

@pytest.fixture(scope='module')
def clip():
    "A ViT-B/16 with random weights and what `load_clip` adds."
    torch.manual_seed(0)
    model = open_clip.create_model(NAME).eval()
    model.tokenizer = open_clip.get_tokenizer(NAME)
    model.image_size, model.mean, model.std = 224, (.5,)*3, (.25,)*3
    model.clip_name, model.preprocess = NAME, None
    return model


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "An image of each of four classes to train on."
    folder = tmp_path_factory.mktemp('images')/'noise'
    for k, name in enumerate(('cat', 'cow', 'dog', 'fox')):
        save_images(folder/'train'/name, 1, 10*k)
        save_images(folder/'test'/name, 1, 10*k+5)
    return load_folder(folder)


def features(model, images, tokens):
    with torch.no_grad():
        return image_features(model, images), text_features(model, tokens)


def change(after, before):
    "Largest relative L2 distance of a row."
    return ((after-before).norm(dim=-1)/before.norm(dim=-1)).max().item()


def first_step(cls, clip, data, images, tokens):
    "How far attaching moves the features, and how far one step then moves the logits."
    config, recipe = cls.recipe('base-to-new', data.name, NAME)
    before = features(clip, images, tokens)
    method = cls(clip, config)
    try:
        attached = [change(a, b) for a, b in zip(features(clip, images, tokens), before)]
        trainer = Trainer(method.train(), data, recipe)
        method.set_classes(data.classnames, data.template)
        logits = []
        for step in range(2):
            with torch.no_grad(), method.testing(data.classnames, data.template):
                logits.append(method.logits(images))
            if not step:
                trainer.one_step()
        return *attached, (logits[1]-logits[0]).norm().item()
    finally:
        method.remove()


def test_defaults_are_as_gentle_as_the_nearest_published_method(clip, data):
    "At most 1 % when attached, at most three times MMA's first step."
    images = normalize(TestImages(data.train, 224).batch(range(4)), clip.mean, clip.std)
    tokens = clip.tokenizer([data.template.format(c) for c in data.classnames])
    image, text, mma = first_step(METHODS['mma'], clip, data, images, tokens)
    print(f'\n{"mma":10} image {100*image:.2f} %  text {100*text:.2f} %  logits {mma:.4g}')
    for name in ('adapter', 'dra'):
        image, text, moved = first_step(METHODS[name], clip, data, images, tokens)
        print(f'{name:10} image {100*image:.2f} %  text {100*text:.2f} %  logits {moved:.4g}'
              f' = {moved/mma:.2f} × MMA')
        assert image <= .01 and text <= .01, name
        assert 0 < moved <= 3*mma, name
