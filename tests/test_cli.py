"""The installed program, as processes: own images from a folder, an embedded set, and every mistake a user can make."""
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from dra_nb.cli import main

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '120'}

def dra_nb(*args, cwd):
    "The program as a user runs it."
    return subprocess.run([sys.executable, '-c', 'import sys; from dra_nb.cli import main; sys.exit(main())', *map(str, args)], capture_output=True, text=True, cwd=cwd, env=ENV, timeout=600)

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A small glyph-clip with random weights, as a file; and one of another width."
    from dataclasses import asdict
    from dra_nb.clip import GlyphClipConfig, build_glyph_clip, save_glyph_clip
    folder, files = tmp_path_factory.mktemp('clip'), []
    for width in (32, 48):
        torch.manual_seed(0)
        config = GlyphClipConfig(embed_dim=32, width=width, layers=6, head_width=16, context=16, image_size=32)
        files.append(save_glyph_clip(build_glyph_clip(config), folder/f'{width}.safetensors', dict(config=dict(model=asdict(config))), torch.arange(1000)))
    return files

@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A folder of class folders."
    root = tmp_path_factory.mktemp('images')/'colours'
    for k,c in enumerate(('red','green','deep_blue','grey')):
        (root/c).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(10*k+i).integers(0, 90, (40, 50, 3))
            pixels[..., k%3] += 150
            Image.fromarray(pixels.astype('uint8')).save(root/c/f'{i}.png')
    return root

def files(folder): return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file())

def call(capsys, *args):
    "The program in this process: faster than a new one."
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err

def test_help_has_an_example_each(capsys):
    for command in ('', 'demo','fit','evaluate','predict','bench','data','pretrain','docs'):
        with pytest.raises(SystemExit) as e: main([*command.split(), '--help'])
        assert e.value.code == 0 and f'example: dra-nb {command or "demo"}' in ' '.join(capsys.readouterr().out.split())

def test_version(capsys):
    with pytest.raises(SystemExit) as e: main(['--version'])
    from dra_nb import __version__
    assert e.value.code == 0 and capsys.readouterr().out == f'dra-nb {__version__}\n'

def test_help_does_not_import_torch(tmp_path):
    code = "import sys; from dra_nb.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=ENV).returncode == 0

def test_own_images_from_fit_to_predict(tmp_path, tiny, own, capsys):
    model, w = ('--pretrained', tiny[0]), tmp_path/'w'
    p = dra_nb('fit', own, '--method', 'dra', '--shots', 3, '--epochs', 2, '--out', 'w', *model, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    assert files(tmp_path) == ['w/adapters.safetensors', 'w/config.json', 'w/run.json']           # the checkpoint is gone
    facts = json.loads((w/'run.json').read_text())
    assert facts['classnames'] == ['deep_blue','green','grey','red'] and len(facts['history']) == 2 and facts['shots'] == 3
    code, out, err = call(capsys, 'evaluate', own, '--weights', w, '--out', tmp_path/'r.jsonl', *model)
    assert code == 0 and '% of 8 images' in out, err
    assert json.loads((tmp_path/'r.jsonl').read_text())['metrics']['accuracy'] >= 0
    code, out, err = call(capsys, 'predict', own/'red'/'0.png', own/'grey'/'1.png', '--classes', 'red,green,deep blue', '--weights', w, '--top', 2, *model)
    assert code == 0 and len(out.splitlines()) == 2 and all(l.count('%') == 2 for l in out.splitlines()), err

def test_bench_resumes(tmp_path, tiny, own, capsys):
    args = ('bench', '--methods', 'zero-shot', 'adapter', '--datasets', own, '--seeds', 1, 2, '--shots', 2, '--out', tmp_path/'r.jsonl', '--pretrained', tiny[0])
    code, out, err = call(capsys, *args, '--workers', 1)
    assert code == 0 and '3 runs in' in out and '[3/3]' in out, err
    lines = (tmp_path/'r.jsonl').read_text().splitlines()
    records = [json.loads(l) for l in lines]
    assert {(r['method'], r['seed']) for r in records} == {('zero-shot',1), ('adapter',1), ('adapter',2)}
    assert {'key','metrics','seconds','settings','versions','device','counts'} <= set(records[0])
    (tmp_path/'r.jsonl').write_text('\n'.join(lines[:2])+'\n')                      # as if it had been stopped
    code, out, err = call(capsys, *args, '--workers', 1)
    assert code == 0 and out.count('[') == 1 and '[3/3]' in out
    assert [json.loads(l)['metrics'] for l in (tmp_path/'r.jsonl').read_text().splitlines()] == [r['metrics'] for r in records]

def test_workers_give_the_same_numbers(tmp_path, tiny, own, capsys):
    args, numbers = ('bench', '--methods', 'zero-shot', 'dra', '--datasets', own, '--seeds', 1, 2, '--shots', 2, '--pretrained', tiny[0]), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                                             # as in the workers
    assert call(capsys, *args, '--out', tmp_path/'1.jsonl', '--workers', 1)[0] == 0
    torch.set_num_threads(threads)
    p = dra_nb(*args, '--out', '2.jsonl', '--workers', 2, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    for f in ('1.jsonl', '2.jsonl'): numbers.append({r['key']: r['metrics'] for r in map(json.loads, (tmp_path/f).read_text().splitlines())})
    assert numbers[0] == numbers[1] and len(numbers[0]) == 3

def test_demo(tmp_path, tiny, capsys, own):
    code, out, err = call(capsys, 'demo', '--dataset', own, '--shots', 2, '--seeds', 1, '--out', tmp_path/'d', '--pretrained', tiny[0], '--workers', 1)
    assert code == 0 and '| colours' in out and 'dra-paper' in out, err
    made = files(tmp_path/'d')
    assert 'results.jsonl' in made and 'token_ranks.png' in made and 'weights/dra-colours-1/adapters.safetensors' in made
    assert Image.open(tmp_path/'d'/'token_ranks.png').size[0] > 400

def test_data_check(capsys, own):
    code, out, err = call(capsys, 'data', 'check', 'vehicles', own)
    assert code == 0 and 'vehicles' in out and '4 classes (2 base, 2 new)' in out

MISTAKES = {
    'unknown data set': ('evaluate nowhere', "unknown data set 'nowhere'"),
    'public data set without its folder': ('bench --datasets imagenet --out {tmp}/r', 'not shipped'),
    'public data set that is not there': ('evaluate dtd --root {tmp}', 'no folder dtd'),
    'unknown model': ('evaluate vehicles --model ViT-Z', 'ViT-Z'),
    'unknown method': ('fit vehicles --method magic --out {tmp}/w', "unknown method 'magic'"),
    'unknown method in bench': ('bench --methods magic --out {tmp}/r', "unknown method 'magic'"),
    'no weights file': ('evaluate vehicles --pretrained {tmp}/none.safetensors', 'none.safetensors'),
    'no adapters': ('evaluate vehicles --weights {tmp} --pretrained {tiny}', 'config.json'),
    'corrupt image': ('predict {bad} --classes cat,dog --pretrained {tiny}', 'bad.png cannot be read'),
    'missing image': ('predict {tmp}/none.png --classes cat,dog --pretrained {tiny}', 'no file'),
    'one class': ('predict {good} --classes cat --pretrained {tiny}', 'at least 2'),
    'bad template': ('predict {good} --classes cat,dog --template photo --pretrained {tiny}', 'template'),
    'empty class folder': ('fit {empty} --out {tmp}/w --pretrained {tiny}', 'holds no images'),
    'one class folder': ('fit {single} --out {tmp}/w --pretrained {tiny}', '1 class folder'),
    'fewer images than shots': ('fit {own} --shots 16 --out {tmp}/w --pretrained {tiny}', 'fewer than the 16 shots'),
    'no shots': ('fit {own} --shots 0 --out {tmp}/w --pretrained {tiny}', 'shots: got 0'),
    'nothing to train': ('fit {own} --shots 2 --method zero-shot --out {tmp}/w --pretrained {tiny}', 'nothing to train'),
    'bad learning rate': ('fit {own} --shots 2 --lr -1 --out {tmp}/w --pretrained {tiny}', 'lr: got'),
    'NaN loss': ('fit {own} --shots 2 --lr 1e38 --epochs 9 --out {tmp}/w --pretrained {tiny}', 'at step'),
    'corrupt image in training': ('fit {torn} --shots 3 --out {tmp}/w --pretrained {tiny}', 'cannot be read'),
    'corrupt images in a check': ('data check {torn}', '12 problem(s) in 1 of 1 data sets: torn'),
    'no steps': ('pretrain --steps 0 --device cpu --out {tmp}/w', 'steps: got 0'),
    'no weights to start from': ('pretrain --steps 5 --start {tmp}/none.safetensors --device cpu --out {tmp}/w', 'none.safetensors'),
    'a foreign file to start from': ('pretrain --steps 5 --start {bad} --device cpu --out {tmp}/w', 'bad.png is no file of glyph-clip'),
    'a folder to start from': ('pretrain --steps 5 --start {own} --device cpu --out {tmp}/w', 'is no file of glyph-clip'),
    'foreign weights': ('evaluate vehicles --pretrained {bad}', 'bad.png is no file of glyph-clip'),
    'no results': ('bench --datasets {own} --out {bad} --pretrained {tiny} --shots 2 --workers 1', 'no JSON record'),
}

@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    "Folders and files that are wrong in one way each."
    data = tmp_path_factory.mktemp('broken')
    for f in ('good.png', 'single/red/1.png', 'empty/red/1.png', 'empty/red/2.png', *(f'torn/{c}/{i}.png' for c in 'ab' for i in range(6))):
        (data/f).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 20)).save(data/f)
    (data/'empty'/'blue').mkdir()
    (data/'bad.png').write_bytes(b'no image')
    for p in (data/'torn').rglob('*.png'): p.write_bytes(p.read_bytes()[:40])
    return data

@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(mistake, tmp_path, tiny, own, broken, capsys):
    line, words = MISTAKES[mistake]
    names = dict(tmp=tmp_path, tiny=tiny[0], own=own, bad=broken/'bad.png', good=broken/'good.png', **{k: broken/k for k in ('empty','single','torn')})
    code, printed, err = call(capsys, *(w.format(**names) for w in line.split()))
    assert code == 2 and words in err and err.startswith('dra-nb: ') and err.count('\n') == 1, err
    left = [f for f in files(tmp_path) if f != 'w/checkpoint.pt']                # of the last whole epoch
    assert left == (['w/last-good/adapters.safetensors', 'w/last-good/config.json'] if mistake == 'NaN loss' else []), left
    if left:
        code, out, err = call(capsys, 'evaluate', own, '--weights', tmp_path/'w'/'last-good', '--pretrained', tiny[0])
        assert code == 0, err                                                    # the last good weights can be used

def test_weights_of_another_width(tmp_path, tiny, own, capsys):
    assert call(capsys, 'fit', own, '--shots', 2, '--epochs', 1, '--out', tmp_path/'w', '--pretrained', tiny[0])[0] == 0
    for words in ('were trained on', 'shape'):                                    # beside what fit noted, and without it
        code, out, err = call(capsys, 'evaluate', own, '--weights', tmp_path/'w', '--pretrained', tiny[1])
        assert code == 2 and words in err and err.count('\n') == 1 and out == ''
        (tmp_path/'w'/'run.json').unlink(missing_ok=True)

@pytest.mark.parametrize('args', [['destroy'], ['fit'], ['bench','--sheds','3'], []])
def test_unknown_command_and_option_exit_with_2(args, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code == 2 and 'usage: dra-nb' in capsys.readouterr().err
