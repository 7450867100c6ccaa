"""The protocols beside base to new, from the command line: across sets, and choosing on the training side."""
import json
from dataclasses import asdict
import numpy as np, pytest, torch
from PIL import Image
from dra_nb import evaluation
from dra_nb.cli import main
from dra_nb.clip import GlyphClipConfig, build_glyph_clip, save_glyph_clip
from dra_nb.training import FitError

def folder(root, classes, images=8):
    "Class folders of noise in a colour each."
    for k in range(classes):
        (root/f'class {k:02}').mkdir(parents=True)
        for i in range(images):
            pixels = np.random.default_rng(100*k+i).integers(0, 60, (32, 32, 3)) + np.random.default_rng(k).integers(0, 190, 3)
            Image.fromarray(pixels.astype('uint8')).save(root/f'class {k:02}'/f'{i}.png')
    return root

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Two sets and a small CLIP of eight blocks a tower."
    d = tmp_path_factory.mktemp('world')
    config = GlyphClipConfig(embed_dim=16, width=16, layers=8, head_width=8, context=12, image_size=16)
    torch.manual_seed(0)
    clip = save_glyph_clip(build_glyph_clip(config), d/'clip.safetensors', dict(config=dict(model=asdict(config))), torch.arange(1000))
    return dict(source=folder(d/'source', 12), target=folder(d/'target', 3), clip=clip)

def call(capsys, *args):
    code = main([str(a) for a in args])
    return code, *capsys.readouterr()

def test_across_sets(tmp_path, world, capsys):
    args = ('bench', '--protocol', 'cross', '--methods', 'zero-shot', 'dra', '--datasets', world['source'], '--targets', world['target'], '--seeds', 1, 2, '--shots', 2,
            '--out', tmp_path/'r.jsonl', '--pretrained', world['clip'], '--workers', 1)
    code, out, err = call(capsys, *args)
    assert code == 0 and '| source |' in out and '| target |' in out and '3 runs in' in out, err
    lines = (tmp_path/'r.jsonl').read_text().splitlines()
    for r in map(json.loads, lines):
        assert r['metrics'].keys() == {'source','target','train_loss'} and r['counts']['train'] == 24                # all classes
        assert r['settings']['protocol'] == 'cross' and (r['method'] == 'zero-shot' or (r['settings']['config']['start'], r['settings']['train']['epochs']) == (7, 1))
    (tmp_path/'r.jsonl').write_text(lines[0]+'\n')                                                                 # as if it had been stopped
    code, out, err = call(capsys, *args)
    assert code == 0 and out.count('\n[') + out.startswith('[') == 2, err
    assert [json.loads(l)['metrics'] for l in (tmp_path/'r.jsonl').read_text().splitlines()] == [json.loads(l)['metrics'] for l in lines]

def test_choosing(tmp_path, world, capsys, monkeypatch):
    seen, whole = set(), evaluation.accuracy
    def accuracy(model, items, *args, **kwargs): seen.update(o.path for o in items); return whole(model, items, *args, **kwargs)
    monkeypatch.setattr(evaluation, 'accuracy', accuracy)
    args = ('bench', '--protocol', 'choose', '--datasets', world['source'], '--shots', 2, '--out', tmp_path/'g.jsonl', '--pretrained', world['clip'], '--workers', 1, '--device', 'cpu')
    code, out, err = call(capsys, *args)
    assert code == 0 and '**adapter**: rate' in out and '**dra**: rate' in out, err
    data = evaluation.load_dataset(world['source'])
    assert seen and not seen & {o.path for o in data.test} and seen < {o.path for o in data.train+data.val}        # no test image was scored
    n = len((tmp_path/'g.jsonl').read_text().splitlines())
    assert n >= 5+4+5+10 and f'{n} runs made now' in out
    code, again, err = call(capsys, *args)
    assert code == 0 and '0 runs made now' in again and again.split('**adapter**')[1].split('runs made')[0].rsplit('\n', 1)[0] == out.split('**adapter**')[1].split('runs made')[0].rsplit('\n', 1)[0]

def test_a_setting_that_diverges_counts_as_nothing_right(world, monkeypatch):
    def fit(*args, **kwargs): raise FitError('the loss became inf at step 3', 3)
    monkeypatch.setattr(evaluation, 'fit', fit)
    args = dict(evaluation.plan(['adapter'], [world['source']], [1], 'choose', pretrained=str(world['clip']), shots=2)[0][1], device='cpu', save=None, bar=False)
    record = evaluation._one_run(**args)
    assert record['metrics'] == dict(base=0., new=0., hm=0., train_loss=None) and 'loss became' in record['failed']
    with pytest.raises(FitError): evaluation._one_run(**dict(args, protocol='base-to-new'))
