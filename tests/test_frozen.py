"""The benchmark does not change by accident: choices and sampled pixels of every set are those on file.
After a change that is meant, raise `glyphs.VERSION` and write them anew:  python tests/test_frozen.py"""
import hashlib, json
from pathlib import Path

import pytest, torch

from dra_nb import glyphs as G

FILE = Path(__file__).parent/'fixtures'/'glyphs.json'
SPLITS = [(s, t) for s in G.SETS for t in ('train', 'val', 'test')] + [(s, 'test') for s in G.SHIFTS]

def choices(name, split):
    "Digest of everything that is drawn by chance: image seeds, drawings, and the numbers behind places, colours and shapes."
    i, look = torch.arange(G.n_images(name, split)), G._LOOKS.get(name, G.Look())
    seed, h = G._seed(name, split, i), hashlib.sha256(repr((name, split, look, G.classnames(name))).encode())
    for t in (seed, G.drawings_in(name, split, i), G._Choices(seed[::97], 100+20*(look.clutter+look.cover)).table): h.update(t.contiguous().numpy().tobytes())
    return h.hexdigest()[:16]

def pixels(name, split):
    "Eight pixels of each of four images spread over the split."
    n = G.n_images(name, split)
    images, at = G.compose(name, split, [0, n//3, 2*n//3, n-1]).flatten(2), G._hash(5, torch.arange(4*8)).view(4, 1, 8) % G.SIZE**2
    return images.gather(2, at.expand(-1, 3, -1)).flatten().tolist()

def write():
    now = {f'{s}/{t}': dict(choices=choices(s, t), pixels=bytes(pixels(s, t)).hex()) for s, t in SPLITS}
    FILE.write_text(json.dumps(dict(version=G.VERSION, sets=now), indent=1)+'\n')

def differs(name, split):
    "What is not as on file: '', 'choices' or 'pixels'."
    kept = json.loads(FILE.read_text())['sets'][f'{name}/{split}']
    if choices(name, split) != kept['choices']: return 'choices'
    there = torch.tensor(list(bytes.fromhex(kept['pixels'])))
    return 'pixels' if (torch.tensor(pixels(name, split))-there).abs().max() > 1 else ''

@pytest.mark.parametrize('name,split', SPLITS)
def test_frozen(name, split):
    assert not differs(name, split), f'{name}/{split} is no longer {G.VERSION}; if that is meant, see the head of this file'

def test_version(): assert json.loads(FILE.read_text())['version'] == G.VERSION

def test_changes_are_seen(monkeypatch):
    "A composition that differs a little, in any of its parts, does not pass."
    def changed(name, value):
        with monkeypatch.context() as m: m.setattr(G, name, value); return differs('food', 'test')
    assert changed('Look', lambda: G._LOOKS['general-adversarial']) == 'choices'
    assert changed('_SPLITS', ('pretrain', 'train', 'test', 'val')) == 'choices'
    for part in ('_shape', '_place', '_background'):
        real = getattr(G, part)
        assert changed(part, lambda *a, **k: real(*a, **k)*.97) == 'pixels', part

if __name__ == '__main__': write()
