"""The recipes are those of the authors' configuration files: a row for every method, written down.

Adapter and DRA have the DRA paper's; CLIP-Adapter's paper gives none, so it has CoOp's. ProDA's
are those of re-implementations. LFA and the Tip-Adapters take all shots at once, or keep them."""
import pytest

from dra_nb.methods import METHODS, find_method

CLIP = 'ViT-B-16-quickgelu'
# what the three columns train on: any public set of the table, ImageNet, ImageNet to be tested
# on others
PLACES = (('base-to-new', 'caltech101'), ('base-to-new', 'imagenet'), ('cross', 'imagenet'))

# method → optimiser, warm-up epochs, weight decay, eps; in the three places rate, epochs, batch
COMMON = {
    'zero-shot': (('sgd', 0, 5e-4, 1e-8), (.0015, 0, 16), (.0015, 0, 128), (.0015, 0, 128)),
    'adapter': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'dra': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'dra-paper': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'dra-control': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'dra-plus': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'coop': (('sgd', 1, 5e-4, 1e-8), (.002, 200, 32), (.002, 50, 32), (.002, 50, 32)),
    'cocoop': (('sgd', 1, 5e-4, 1e-8), (.002, 10, 1), (.002, 10, 1), (.002, 10, 1)),
    'kgcoop': (('sgd', 1, 5e-4, 1e-8), (.002, 100, 128), (.002, 100, 128), (.002, 100, 128)),
    'maple': (('sgd', 1, 5e-4, 1e-8), (.0035, 5, 4), (.0035, 5, 4), (.0026, 2, 4)),
    'mma': (('sgd', 0, 5e-4, 1e-8), (.0015, 5, 16), (.0015, 5, 128), (.0015, 1, 128)),
    'promptsrc': (('sgd', 1, 5e-4, 1e-8), (.0025, 20, 4), (.0025, 20, 4), (.0025, 20, 4)),
    'metaprompt': (('sgd', 1, 5e-4, 1e-8), (.0015, 8, 16), (.0015, 8, 16), (.0015, 8, 16)),
    'proda': (('sgd', 1, 5e-4, 1e-8), (.001, 100, 4), (.001, 100, 4), (.001, 100, 4)),
    'tcp': (('adam', 1, 5e-4, 1e-3), (.002, 50, 32), (.002, 25, 32), (.002, 25, 32)),
    # an epoch is a step on all shots, whatever the batch
    'lfa': (('adamw', 0, 5e-4, 1e-8), (5e-4, 40, 16), (5e-4, 100, 128), (5e-4, 200, 128)),
    # 8,000 steps: 25, 250 and 500 an epoch
    'clip-lora': (('adamw', 0, .01, 1e-8), (2e-4, 320, 32), (2e-4, 32, 32), (2e-4, 16, 32)),
    'clip-adapter': (('sgd', 1, 5e-4, 1e-8), (.002, 200, 32), (.002, 50, 32), (.002, 50, 32)),
    'tip-adapter': (('adamw', 0, .01, 1e-4), (.001, 1, 256), (.001, 1, 256), (.001, 1, 256)),
    'tip-adapter-f': (('adamw', 0, .01, 1e-4), (.001, 20, 256), (.001, 20, 256), (.001, 20, 256)),
}

# method → settings of base-to-new that a recipe could get wrong, and those that `cross` changes
SETTINGS = {
    'adapter': (dict(start=5, rank=32, scale=.001), dict(start=7)),
    'dra': (dict(start=5, rank=32, scale=.001), dict(start=7)),
    'dra-paper': (dict(start=5, rank=32, scale=.001), dict(start=7)),
    'coop': (dict(words='a photo of a', position='end'), {}),
    'cocoop': (dict(words='a photo of a'), {}),
    'kgcoop': (dict(words='a photo of a', weight=8.), {}),
    'maple': (dict(words='a photo of a', length=2, depth=9), dict(depth=3)),
    'mma': (dict(start=5, rank=32, scale=.001), dict(start=9)),
    'promptsrc': (dict(words='a photo of a', image_length=4, depth=9, mean=15., std=1., sentences=60,
                       text_weight=25., image_weight=10.), dict(depth=3, mean=6., std=10.)),
    'metaprompt': (dict(length=2, meta_step=.2), {}),
    'proda': (dict(sentences=32, length=16, per_step=4, diversity=.1), {}),
    'tcp': (dict(sentence='* * * * {}.', weight=8., block=9), {}),
    'lfa': (dict(beta=.9, nearest=3, noise=.035, dropout=.05), {}),
    'clip-lora': (dict(rank=2, alpha=1., dropout=.25), {}),
}

# method → data set → epochs, where a set has its own
OWN = {
    'tcp': dict(sun397=25, dtd=50),
    'lfa': dict(dtd=100, eurosat=50, food101=50, fgvc_aircraft=100, oxford_flowers=50,
                oxford_pets=10, stanford_cars=50, sun397=50, ucf101=100),
    'tip-adapter-f': dict(eurosat=100, dtd=20),
    'coop': dict(sun397=200),
}


def recipe(name, protocol, dataset):
    cls, preset = find_method(name)
    return cls.recipe(protocol, dataset, CLIP, preset)


def test_every_method_has_a_row():
    assert {find_method(name)[0].name for name in COMMON} == set(METHODS)


@pytest.mark.parametrize('name', COMMON)
def test_how_it_is_trained(name):
    same, *in_places = COMMON[name]
    for place, own in zip(PLACES, in_places):
        _, train = recipe(name, *place)
        found = train.optimizer, train.warmup_epochs, train.weight_decay, train.eps
        assert found == same, place
        assert (train.lr, train.epochs, train.batch_size) == own, place
        assert (train.momentum, train.warmup_lr) == (.9, 1e-5)
        if not name.startswith('tip-adapter'):
            assert (train.area, train.flip) == ((.08, 1.), .5), place


@pytest.mark.parametrize('name', SETTINGS)
def test_what_is_trained(name):
    expected, in_cross = SETTINGS[name]
    for protocol, dataset in PLACES:
        config, _ = recipe(name, protocol, dataset)
        wanted = {**expected, **(in_cross if protocol == 'cross' else {})}
        assert {field: getattr(config, field) for field in wanted} == wanted, (protocol, dataset)


@pytest.mark.parametrize('name', OWN)
def test_sets_with_their_own_number_of_epochs(name):
    found = {dataset: recipe(name, 'base-to-new', dataset)[1].epochs for dataset in OWN[name]}
    assert found == OWN[name]
