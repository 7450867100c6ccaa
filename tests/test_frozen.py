"""The benchmark does not change by accident: choices and sampled pixels of every set are on file.
After a change that is meant, raise `glyphs.VERSION` and write them anew:
python tests/test_frozen.py"""
import hashlib
import json
from pathlib import Path

import pytest
import torch

from dra_nb.data import glyphs as G

FILE = Path(__file__).parent/'fixtures'/'glyphs.json'
SPLITS = [(s, t) for s in G.SETS for t in ('train', 'val', 'test')]
SPLITS += [(s, 'test') for s in G.SHIFTS]


def choices(name, split):
    "Digest of all that chance draws: seeds, drawings, numbers behind places, colours and shapes."
    i, difficulty = torch.arange(G.n_images(name, split)), G.difficulty_of(name)
    seed = G._seed(name, split, i)
    look = repr(difficulty).replace('Difficulty', 'Look')     # its name when the file was written
    head = f"({name!r}, {split!r}, {look}, {G.classnames(name)!r})"
    h = hashlib.sha256(head.encode())
    n_draws = 100+20*(difficulty.clutter+difficulty.cover)
    for t in (seed, G.drawings_in(name, split, i), G.UniformDraws(seed[::97], n_draws).table):
        h.update(t.contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def pixels(name, split):
    "Eight pixels of each of four images spread over the split."
    n = G.n_images(name, split)
    images = G.compose(name, split, [0, n//3, 2*n//3, n-1]).flatten(2)
    at = G.hash_numbers(5, torch.arange(4*8)).view(4, 1, 8) % G.SIZE**2
    return images.gather(2, at.expand(-1, 3, -1)).flatten().tolist()


def write():
    now = {}
    for s, t in SPLITS:
        now[f'{s}/{t}'] = dict(choices=choices(s, t), pixels=bytes(pixels(s, t)).hex())
    FILE.write_text(json.dumps(dict(version=G.VERSION, sets=now), indent=1)+'\n')


def differs(name, split):
    "What is not as on file: '', 'choices' or 'pixels'."
    kept = json.loads(FILE.read_text())['sets'][f'{name}/{split}']
    if choices(name, split) != kept['choices']:
        return 'choices'
    there = torch.tensor(list(bytes.fromhex(kept['pixels'])))
    off = (torch.tensor(pixels(name, split))-there).abs().max()
    return 'pixels' if off > 1 else ''


@pytest.mark.parametrize('name,split', SPLITS)
def test_frozen(name, split):
    assert not differs(name, split), (
        f'{name}/{split} is no longer {G.VERSION}; if that is meant, see the head of this file')


def test_version():
    assert json.loads(FILE.read_text())['version'] == G.VERSION


def test_changes_are_seen(monkeypatch):
    "A composition that differs a little, in any of its parts, does not pass."
    def changed(name, value):
        with monkeypatch.context() as m:
            m.setattr(G, name, value)
            return differs('food', 'test')

    hard = G.difficulty_of('general-adversarial')
    assert changed('Difficulty', lambda: hard) == 'choices'
    assert changed('_SPLITS', ('pretrain', 'train', 'test', 'val')) == 'choices'
    for part in ('_shape', '_place', '_background'):
        real = getattr(G, part)

        def dimmer(*args, real=real, **kwargs):
            return real(*args, **kwargs)*.97

        assert changed(part, dimmer) == 'pixels', part


if __name__ == '__main__':
    write()
