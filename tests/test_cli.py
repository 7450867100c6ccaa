"The program as it is typed: own images, embedded and public sets, and the mistakes of users."
import csv
import json
import os
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import save_tiny_clip, wait_for
from miniature import write
from PIL import Image

from dra_nb import __version__
from dra_nb.cli import COMMANDS, main
from dra_nb.data import open_image
from dra_nb.files import read_tensors, write_tensors
from dra_nb.methods import METHODS, method_names

PROGRAM = 'import sys; from dra_nb.cli import main; sys.exit(main())'


def process(*words, cwd, **options):
    "The program in a process of its own."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '120'}
    return subprocess.Popen([sys.executable, '-c', PROGRAM, *map(str, words)], cwd=cwd, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def call(capsys):
    "The program in this process: exit code, standard output, standard error."
    def call(*words):
        capsys.readouterr()
        code = main([str(w) for w in words])
        return code, *capsys.readouterr()
    return call


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Files of small glyph-clips with random weights: two seeds, and another width."
    folder, files = tmp_path_factory.mktemp('clip'), []
    for width, seed in ((32, 0), (32, 1), (48, 0)):
        shape = dict(embed_dim=32, width=width, layers=6, head_width=16, context=16, image_size=32)
        path = folder/f'{width}-{seed}.safetensors'
        files.append(save_tiny_clip(path, seed, words=49408, **shape))
    return files


def paint(folder, colour, n=8):
    "Noise in one colour."
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.random.default_rng(10*colour+i).integers(0, 90, (40, 50, 3))
        pixels[..., colour % 3] += 150
        Image.fromarray(pixels.astype('uint8')).save(folder/f'{i}.png')


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A folder of class folders."
    root = tmp_path_factory.mktemp('images')/'colours'
    for k, name in enumerate(('red', 'green', 'deep_blue', 'grey')):
        paint(root/name, k)
    return root


@pytest.fixture(scope='module')
def trained(tmp_path_factory, own, tiny):
    "Weights of two epochs on these images."
    out = tmp_path_factory.mktemp('trained')/'w'
    assert main(['fit', str(own), '--shots', '3', '--train', 'epochs=2', '--out', str(out),
                 '--pretrained', str(tiny[0])]) == 0
    return out


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file())


# What the program says of itself

def test_help_has_an_example_each(capsys):
    for command in ('', *COMMANDS):
        with pytest.raises(SystemExit) as e:
            main([*command.split(), '--help'])
        said = ' '.join(capsys.readouterr().out.split())
        assert e.value.code == 0 and f'example: dra-nb {command or "demo"}' in said
    assert list(COMMANDS) == ['fit', 'evaluate', 'predict', 'bench', 'paper', 'speed', 'demo',
                              'data', 'pretrain']


def test_version(capsys):
    with pytest.raises(SystemExit) as e:
        main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'dra-nb {__version__}\n'


def test_help_does_not_import_torch(tmp_path):
    code = ("import sys; from dra_nb.cli import build_parser; build_parser(); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize('words', [['destroy'], ['fit'], ['bench', '--sheds', '3'], []])
def test_unknown_command_and_option_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as e:
        main(words)
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.count('\n') == 1
    known = words[:1] if words and words[0] in COMMANDS else []
    known = ' '.join(['dra-nb', *known])
    assert said.startswith('dra-nb: ') and f'; {known} --help has the list' in said


@pytest.mark.parametrize('words', ['paper fig3 --done --out . --save {}',
                                   'paper table1 --plan --methods lfa --seeds 1 --save {}'])
def test_what_save_writes(words, tmp_path, monkeypatch, capsys):
    "A figure that cannot be drawn leaves the file alone; a plan is written as it is printed."
    monkeypatch.chdir(tmp_path)
    file = tmp_path/'file.svg'
    file.write_text('precious')
    assert main(words.format(file).split()) == 0
    said = capsys.readouterr().out
    assert file.read_text() == ('precious' if 'fig3' in words else said)


# Settings

def test_show_needs_no_clip(call, monkeypatch):
    "Method, preset, settings and recipe are a function of names."
    monkeypatch.setattr('dra_nb.weights.load_clip', None)
    for name, cls in METHODS.items():
        if not cls.recipe()[1].epochs:
            continue
        for clip in ('glyph-clip', 'ViT-B-16-quickgelu'):
            code, out, err = call('fit', 'oxford_pets', '--method', name, '--model', clip, '--show')
            assert code == 0 and re.search(rf'preset +{cls.preset_for(clip)}\n', out), err
            config, train = cls.recipe('base-to-new', 'oxford_pets', clip)
            shown = dict(word.split('=') for word in shlex.split(out) if '=' in word)
            assert shown.keys() == {**asdict(config), **asdict(train)}.keys()
    code, out, err = call('fit', 'food', '--show', '--set', 'rank=16', 'ratios=1,0.5',
                          '--train', 'lr=0.01', '--train', 'epochs=10')
    for word in ('rank=16', 'ratios=1.0,0.5', 'lr=0.01', 'epochs=10'):
        assert word in out.split(), err


def test_every_field_can_be_set(call):
    "What --show prints can be typed again, and gives itself."
    for method in ('dra', 'dra-likely', 'adapter-paper', 'coop'):
        first = call('fit', 'food', '--method', method, '--show')[1]
        blocks = first.split('--')[1:]
        words = [word for block in blocks for word in shlex.split('--'+block)]
        assert call('fit', 'food', '--method', method, '--show', *words)[1] == first


def test_a_preset_of_its_own(call):
    assert 'preset   paper' in call('fit', 'food', '--preset', 'paper', '--show')[1]
    assert 'preset   paper' in call('fit', 'food', '--method', 'dra-paper', '--show')[1]
    code, _, err = call('fit', 'food', '--method', 'dra-paper', '--preset', 'likely', '--show')
    assert code == 2 and "preset: got 'likely' with the method dra-paper" in err
    code, _, err = call('fit', 'food', '--method', 'magic', '--show')
    assert code == 2 and all(name in err for name in method_names())


@pytest.mark.parametrize('words, said', [
    ('--set start=13', 'start'), ('--method maple --set depth=50', 'depth')])
def test_show_refuses_what_fit_refuses(words, said, tmp_path, call):
    "Settings that do not fit the CLIP, with the same line."
    code, _, shown = call('fit', 'food', *words.split(), '--show')
    assert code == 2 and shown.startswith(f'dra-nb: {said}: got')
    words = ['fit', 'food', *words.split(), '--out', str(tmp_path), '--shots', '1']
    assert call(*words)[::2] == (2, shown)


# From images to answers

def test_own_images_from_fit_to_predict(tmp_path, trained, tiny, own, call):
    clip = '--pretrained', tiny[0]
    # the checkpoint is gone
    assert files(trained) == ['.lock', 'run.json', 'weights.safetensors']
    facts = json.loads((trained/'run.json').read_text())
    _, metadata = read_tensors(trained/'weights.safetensors')
    assert metadata['dra_nb'] == facts                                # one file says all
    assert facts['classnames'] == ['deep_blue', 'green', 'grey', 'red'] and facts['shots'] == 3
    assert len(facts['history']) == facts['train']['epochs'] == 2
    assert (facts['method'], facts['preset'], facts['config']['rank']) == ('dra', 'recommended', 32)
    code, out, err = call('evaluate', own, '--weights', trained, '--out', tmp_path/'r.jsonl', *clip)
    accuracy = json.loads((tmp_path/'r.jsonl').read_text())['metrics']['accuracy']
    assert code == 0 and f' {accuracy:.2f} % of 8 images' in out, err
    assert out.endswith(f'added to {tmp_path/"r.jsonl"}\n') and 'run.json' not in err
    code, out, err = call('predict', own/'red'/'0.png', own/'grey'/'1.png', '--classes',
                          'red,green,deep blue', '--weights', trained, '--top', 2, *clip)
    assert code == 0 and [line.count('%') for line in out.splitlines()] == [2, 2], err
    code, out, err = call('predict', own, '--weights', trained, *clip)  # a folder
    assert code == 0 and len(out.splitlines()) == 32, err
    assert out.startswith(str(own/'deep_blue'/'0.png'))
    (own/'red'/'new.heic').write_bytes(b'x')
    code, told, err = call('predict', own, '--weights', trained, '--top', 2, *clip, '--out',
                           tmp_path/'answers.csv')
    (own/'red'/'new.heic').unlink()
    assert code == 0 and '1 picture(s) not read (.heic)' in err
    with open(tmp_path/'answers.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['image', 'class 1', 'probability 1', 'class 2', 'probability 2']
    for row,line in zip(rows, told.splitlines(), strict=True):
        shares = [float(row[f'probability {k}']) for k in (1, 2)]
        shown = [f'{row[f"class {k}"]} {100*share:.1f} %' for k,share in zip((1, 2), shares)]
        assert line == '  '.join([row['image'], *shown])


def test_one_line_before_and_lines_while_it_trains(tmp_path, tiny, own):
    "A pipe is no terminal."
    run = process('fit', own, '--shots', 4, '--train', 'epochs=2', 'batch_size=8', '--out', 'w',
                  '--pretrained', tiny[0], cwd=tmp_path)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    first, *epochs, last = out.splitlines()
    assert re.fullmatch(r'dra \(recommended\) on 16 images of 4 classes: 2 steps an epoch, '
                        r'4 in all, [\d,]+ parameters', first)
    assert [line[:12] for line in epochs] == ['epoch 1 of 2', 'epoch 2 of 2']
    assert all('loss' in line and 'accuracy' in line for line in epochs)
    assert last.startswith('training accuracy')


def test_names_are_a_list(tmp_path, tiny, own, call):
    "A comma in a class name; and names, template and CLIP stand with the weights, not beside them."
    root, clip = tmp_path/'d', ('--pretrained', tiny[0])
    for k, name in enumerate(('salt, coarse', 'sugar')):
        paint(root/name, k, 4)
    sentence = 'a heap of {}.'
    code, _, err = call('fit', root, '--shots', 2, '--train', 'epochs=1', '--template', sentence,
                        '--out', tmp_path/'w', *clip)
    assert code == 0, err
    old = '{"classnames": ["old", "older"]}'                  # of a run killed in between
    (tmp_path/'w'/'run.json').write_text(old)
    code, out, err = call('predict', root/'sugar'/'0.png', '--weights', tmp_path/'w', *clip)
    assert code == 0 and 'salt, coarse' in out and 'old' not in out, err
    assert 'run.json is damaged, or of other weights' in err
    assert f'"{sentence}"' in call('evaluate', root, '--weights', tmp_path/'w', *clip)[1]


def test_without_shots_what_is_there(tmp_path, tiny, own, call):
    code, out, err = call('fit', own, '--train', 'epochs=1', '--out', tmp_path/'w',
                          '--pretrained', tiny[0])
    assert code == 0 and 'on 16 images of 4 classes' in out, err
    assert 'has 4 training images' in err and 'half to training' in err
    code, out, err = call('fit', own, '--shots', 16, '--out', tmp_path/'w', '--pretrained', tiny[0])
    assert code == 2 and 'fewer than the 16 shots' in err


def test_warnings_a_newcomer_needs(tiny, own, tmp_path, call):
    "Photographs and words that glyph-clip never met, and a CLIP at chance."
    code, _, err = call('predict', own/'red'/'0.png', '--classes', 'manatee,platypus,fire engine')
    assert code == 0 and '--model ViT-B-16-quickgelu --pretrained openai' in err
    assert "no word for 2 of 3 names ('manatee', 'platypus')" in err
    code, _, err = call('fit', own, '--shots', 4, '--train', 'epochs=1', '--out', tmp_path/'w',
                        '--pretrained', tiny[0])
    assert code == 0 and 'guessing gives 25 %' in err
    code, _, err = call('data', 'check', 'vehicles')
    assert (code, err) == (0, '')


def test_predict_reads_a_file_once_and_answers_as_it_goes(tmp_path, tiny, call, monkeypatch):
    "A picture whose end is missing stops it at its batch; the answers before stand."
    paint(tmp_path/'many', 0, n=102)
    opened = []

    def open_counted(path):
        opened.append(path)
        return open_image(path)

    monkeypatch.setattr('dra_nb.data.images.open_image', open_counted)
    words = 'predict', tmp_path/'many', '--classes', 'cat,dog', '--pretrained', tiny[0]
    code, out, err = call(*words)
    assert code == 0 and len(out.splitlines()) == len(opened) == len(set(opened)) == 102, err
    last = out.splitlines()[-1].split('  ')[0]
    Path(last).write_bytes(Path(last).read_bytes()[:-900])
    code, out, err = call(*words)
    assert code == 2 and len(out.splitlines()) == 100, err
    said = f'dra-nb: image: {last} cannot be read as an image (its end is missing)'
    assert err.splitlines()[-1] == said


def test_class_list_files(tmp_path, own, tiny, call):
    "A mark in front, UTF-16, remarks, and a name with a comma."
    picture = own/'red'/'0.png'
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        (tmp_path/'names.txt').write_text('# fruit\nsalt, coarse\n\npear\r\n', encoding=encoding)
        code, out, err = call('predict', picture, '--classes', tmp_path/'names.txt',
                              '--pretrained', tiny[0])
        shown = re.findall(r'  (.+?) [\d.]+ %', out)
        assert code == 0 and sorted(shown) == ['pear', 'salt, coarse'], err
        assert ('names.txt is in UTF-16' in err) == (encoding == 'utf-16')


# Where it writes

def test_links_devices_and_pipes(tmp_path, trained, tiny, own, call):
    words = 'evaluate', own, '--weights', trained, '--pretrained', tiny[0], '--out'
    (tmp_path/'real.jsonl').touch(0o640)
    os.chmod(tmp_path/'real.jsonl', 0o640)
    (tmp_path/'link').symlink_to('real.jsonl')
    assert call(*words, tmp_path/'link')[0] == 0
    assert (tmp_path/'link').is_symlink() and (tmp_path/'real.jsonl').read_text().count('\n') == 1
    assert stat.S_IMODE((tmp_path/'real.jsonl').stat().st_mode) == 0o640
    os.mkfifo(tmp_path/'pipe')
    for place in ('/dev/null', tmp_path/'pipe'):
        code, out, err = call(*words, place)
        assert code == 2 and 'no regular file' in err
        assert not Path(place).is_file()
        code, out, err = call('fit', own, '--out', place, '--pretrained', tiny[0])
        assert code == 2 and 'is no folder' in err and out == ''


def test_files_can_be_read_as_the_umask_says(tmp_path, tiny, own, call):
    before = os.umask(0o027)
    try:
        code, _, err = call('fit', own, '--shots', 2, '--train', 'epochs=1', '--out', tmp_path/'w',
                            '--pretrained', tiny[0])
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path/'w'/name).stat().st_mode) for name in files(tmp_path/'w')}
    assert code == 0 and modes == {0o640}, err


def test_a_full_disk_is_one_line(tmp_path, tiny, own, call):
    "The checkpoint does not fit, or the weights of a bench."
    common = '--shots', 2, '--train', 'epochs=1', '--pretrained', tiny[0]
    bench = 'bench', '--methods', 'adapter', '--datasets', own, '--seeds', 1, '--workers', 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for words in (('fit', own, *common, '--out', tmp_path/'w'),
                  (*bench, *common, '--out', tmp_path/'r', '--save', tmp_path/'s')):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            code, _, err = call(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        last = err.splitlines()[-1]
        assert code == 2 and last.startswith('dra-nb: ') and 'File too large' in last, err
    assert [name for name in files(tmp_path) if '/.' not in name] == []


# Many runs

def bench_words(own, tiny, out, *more):
    return ('bench', '--methods', 'zero-shot', 'adapter', '--datasets', own, '--seeds', 1, 2,
            '--shots', 2, '--pretrained', tiny[0], '--out', out, *more)


def records(folder):
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob('*.json'))]
    return {record['key']: record for record in found}


def test_bench_resumes(tmp_path, tiny, own, call):
    words = bench_words(own, tiny, tmp_path/'r', '--workers', 1, '--train', 'epochs=1',
                        '--set', 'rank=8')
    code, out, err = call(*words)
    assert code == 0 and '3 runs in' in out and '[3/3] colours adapter seed 2: base ' in out, err
    first = records(tmp_path/'r')
    runs = [record['run'] for record in first.values()]
    made = {(r['method'], r['seed']) for r in runs}
    assert made == {('zero-shot', 1), ('adapter', 1), ('adapter', 2)}
    assert {r['config'].get('rank') for r in runs} == {None, 8}
    assert {r['train']['epochs'] for r in runs} == {0, 1}
    min((tmp_path/'r').glob('adapter*.json')).unlink()        # as if it had been stopped
    code, out, err = call(*words)
    assert code == 0 and out.count('[') == 1 and '[3/3]' in out, err
    again = records(tmp_path/'r')
    assert again.keys() == first.keys()
    for key, record in again.items():
        assert record['metrics'] == first[key]['metrics']


def test_bench_refuses_before_any_work(tmp_path, tiny, own, call, monkeypatch):
    monkeypatch.setattr('dra_nb.bench.runs.load_clip', None)
    three = tmp_path/'three'
    for k, name in enumerate(('cat', 'dog', 'cow')):
        paint(three/name, k, 4)
    good, out = own, tmp_path/'r'
    for data, folder, more, why in (
            (three, out, '', '3 class(es), base-to-new needs at least 4'),
            (good, out, '--set ratios=1,0.5', 'adapter: ratios: unknown setting'),
            (good, out, '--train epochs=many', "epochs: got 'many'"),
            (good, out, '--protocol choose', "protocol: got 'choose'"),
            (good, out, '--targets food', 'targets: got'),
            (good, own/'red'/'0.png', '', 'is no folder')):
        code, out, err = call(*bench_words(data, tiny, folder, *more.split()))
        assert code == 2 and why in err.splitlines()[-1] and out == '', err
    assert [path.name for path in tmp_path.iterdir()] == ['three']


def test_demo_with_two_workers(tmp_path, tiny, own):
    "A table, a figure, weights; as a process, since workers are started anew."
    run = process('demo', '--dataset', own, '--shots', 2, '--seeds', 1, '--out', 'd',
                  '--pretrained', tiny[0], '--workers', 2, cwd=tmp_path)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0 and '[4/4] colours' in out, err
    rows = re.findall(r'^\| colours +\| (\S+)', out, re.M)
    assert rows == ['zero-shot', 'adapter', 'dra', 'lfa']
    made = files(tmp_path/'d')
    assert 'token_ranks.png' in made and len(records(tmp_path/'d'/'results')) == 4
    assert sum(name.endswith('weights.safetensors') for name in made) == 3
    assert Image.open(tmp_path/'d'/'token_ranks.png').size[0] > 400


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_bench_and_its_workers(number, code, tmp_path, tiny, own):
    words = bench_words(own, tiny, 'r', '--workers', 2, '--train', 'epochs=5000')
    run = process(*words, cwd=tmp_path, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob('r/*.json')) or run.poll() is not None)  # zero-shot's
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == code and 'the same command goes on' in err, err
    assert len(records(tmp_path/'r')) == 1 and 'Traceback' not in err
    for _ in range(100):
        listed = subprocess.run(['pgrep', '-s', str(run.pid)], capture_output=True, text=True)
        left = listed.stdout.split()
        if not left:
            return
        time.sleep(.1)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    pytest.fail(f'{len(left)} processes were still there')


# Data

def test_data_check(call, own):
    code, out, err = call('data', 'check', 'vehicles', own)
    assert code == 0 and '4 classes (2 base, 2 new)' in out, err
    assert '32 of 32 files in order' in out


@pytest.mark.filterwarnings('ignore::UserWarning')           # a miniature is no whole set
def test_data_check_lists_all_problems(tmp_path, call):
    "An empty class, a class of one picture and a torn file, in one go."
    for k, (name, n) in enumerate(dict(cat=4, dog=4, cow=1).items()):
        paint(tmp_path/'d'/name, k, n)
    (tmp_path/'d'/'empty').mkdir()
    (tmp_path/'d'/'cat'/'0.png').write_bytes(b'no image')
    code, out, err = call('data', 'check', tmp_path/'d')
    assert code == 2 and '3 kind(s) of problem in 1 of 1' in err, out+err
    for why in ('empty: this class folder holds no images', '0.png: is the only image',
                'cat/0.png'):
        assert why in out


def test_pets_from_check_to_predict(tmp_path, tiny, call):
    "A public set in miniature, through every command that reads one."
    root, weights, clip = tmp_path/'DATA', tmp_path/'w', ('--pretrained', tiny[0])
    write('oxford_pets', root, train=5, val=2, test=3)
    pets = 'oxford_pets', '--root', root
    code, out, err = call('data', 'check', *pets)
    assert code == 2 and '4 classes, expected 37' in out, err
    assert '40 of 40 files in order' in out, out
    code, out, err = call('fit', *pets, '--shots', 4, '--subset', 'base', '--train', 'epochs=1',
                          '--out', weights, *clip)
    assert code == 0 and 'on 8 images of 2 classes' in out, err
    facts = json.loads((weights/'run.json').read_text())
    assert facts['dataset'] == 'oxford_pets'
    assert facts['classnames'] == ['abyssinian', 'american_bulldog']
    for subset, count in (('base', 6), ('new', 6), ('all', 12)):
        code, out, err = call('evaluate', *pets, '--subset', subset, '--weights', weights, *clip)
        assert code == 0 and f'% of {count} images' in out and '"a photo of a {}."' in out, err
    for more in ((), ('--weights', weights, '--template', 'field')):
        code, out, err = call('evaluate', *pets, *more, *clip)
        assert code == 0 and '"a photo of a {}, a type of pet."' in out, err
    picture = root/'oxford_pets'/'images'/'Abyssinian_9.jpg'
    code, out, err = call('predict', picture, '--weights', weights, *clip)
    assert code == 0 and 'american_bulldog' in out, err


def test_another_set_is_tested_as_bench_tests_it(tmp_path, tiny, call):
    "With its own sentence, in the recipe's precision; what was given to fit goes with the weights."
    root, clip = tmp_path/'DATA', ('--pretrained', tiny[0])
    write('oxford_pets', root, train=5, val=2, test=3)
    write('eurosat', root)
    pets, land = ('oxford_pets', '--root', root), ('eurosat', '--root', root)
    short = '--shots', 2, '--train', 'epochs=1', 'amp=bf16', *clip
    code, _, err = call('bench', '--protocol', 'cross', '--methods', 'clip-adapter', '--root', root,
                        '--datasets', 'oxford_pets', '--targets', 'eurosat', '--seeds', 1,
                        '--out', tmp_path/'r', '--save', tmp_path/'saved', '--workers', 1, *short)
    assert code == 0, err
    (record,) = records(tmp_path/'r').values()
    metrics = record['metrics']
    code, _, err = call('fit', *pets, '--method', 'clip-adapter', '--out', tmp_path/'w', *short)
    assert code == 0, err
    saved = next((tmp_path/'saved').iterdir())
    lines = tmp_path/'tests.jsonl'
    for weights in (tmp_path/'w', saved):
        for words in (pets, land):
            code, out, err = call('evaluate', *words, '--weights', weights, '--out', lines, *clip)
            assert code == 0, err
            said = json.loads(lines.read_text().splitlines()[-1])
            assert said['metrics']['accuracy'] == metrics[words[0]]
            assert said['precision'] == 'bf16'
            assert '"a photo of a {}, a type of pet."' in out or words == land
    assert 'a centered satellite photo of {}.' in out
    code, _, err = call('fit', *pets, '--template', 'my {} here.', '--out', tmp_path/'given', *short)
    assert code == 0, err
    code, out, err = call('evaluate', *land, '--weights', tmp_path/'given', *clip)
    assert code == 0 and '"my {} here."' in out, err


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_bench_of_public_sets(tmp_path, tiny, call):
    "One that is not there is told before any run."
    root, out = tmp_path/'DATA', tmp_path/'r'
    write('oxford_pets', root, train=5, val=2, test=3)
    words = ('bench', '--methods', 'zero-shot', '--root', root, '--out', out, '--shots', 4,
             '--workers', 1, '--pretrained', tiny[0], '--datasets', 'oxford_pets')
    code, _, err = call(*words, 'dtd')
    assert code == 2 and 'dtd: no folder' in err and not out.exists()
    write('dtd', root)
    code, said, err = call(*words, 'dtd')
    assert code == 0 and 'average of 2' in said and len(records(out)) == 2, err


@pytest.mark.parametrize('line, why', [
    ('dtd', 'root: name the folder'), ('--root {}', 'datasets: name what to fetch'),
    ('imagenet_sketch --root {}', 'HaohanWang'), ('vehicles --root {}', 'no public data set')])
def test_download_mistakes(line, why, tmp_path, call):
    code, out, err = call('data', 'download', *line.format(tmp_path/'DATA').split())
    assert code == 2 and why in out+err
    assert err.count('\n') == 1 and files(tmp_path) == []


def test_download_goes_on(tmp_path, call, monkeypatch):
    "After an address that cannot be reached."
    asked = []

    def download(name, root, show):
        asked.append(name)
        return [] if name == 'dtd' else [f'{name}: not reachable']
    monkeypatch.setattr('dra_nb.data.download.download', download)
    code, out, err = call('data', 'download', 'sun397', 'ucf101', 'dtd', '--root', tmp_path)
    assert code == 2 and asked == ['sun397', 'ucf101', 'dtd'] and 'dtd: fetched' in out
    assert out.count('not reachable') == 2 and err.count('\n') == 1


def test_download_knows_all_names_first(tmp_path, call, monkeypatch):
    "A wrong name is refused before the first gigabyte."
    asked = []
    monkeypatch.setattr('dra_nb.data.download.download', lambda *given: asked.append(given))
    code, out, err = call('data', 'download', 'dtd', 'typo', '--root', tmp_path)
    assert (code, asked, out) == (2, [], '') and "got 'typo'" in err and err.count('\n') == 1


def test_done_never_trains(tmp_path, call):
    "Nothing is made with --done, and times of one CLIP are not shown for another."
    code, out, err = call('paper', 'fig4', '--done', '--out', tmp_path)
    assert code == 2 and 'done: got no weights' in err and files(tmp_path) == []
    times = dict(model='ViT-B-16-quickgelu', pretrained='openai', device='a GPU', rows={})
    (tmp_path/'efficiency.jsonl').write_text(json.dumps(times)+'\n')
    code, out, err = call('paper', 'table6', '--done', '--out', tmp_path)
    assert code == 2 and 'done: got no times of glyph-clip' in err and not out
    with open(tmp_path/'efficiency.jsonl', 'a') as f:
        f.write('{"model": \n[1]\n{"model": "glyph-clip", "rows": {"DRA": {}}}\n')
    code, out, err = call('paper', 'table6', '--done', '--out', tmp_path)
    assert code == 2 and err.count('is left out') == 3 and err.count('\n') == 4
    (tmp_path/'fig3.svg').write_text('<svg/>')
    code, out, err = call('paper', 'fig3', '--plan', '--save', tmp_path/'fig3.svg')
    assert code == 2 and 'save: got' in err and (tmp_path/'fig3.svg').read_text() == '<svg/>'


def test_missing_images_come_with_a_line_that_lists_them(tmp_path, tiny, call):
    lines = [f'{c}/{i}.png,{c},{split}' for c in 'ab' for i, split in enumerate(('train', 'test'))]
    table = tmp_path/'list of mine.csv'
    table.write_text('\n'.join(['path,class,split', *lines])+'\n')
    code, _, err = call('fit', table, '--out', tmp_path/'w', '--pretrained', tiny[0])
    advice = err.splitlines()[-1].split('`')[1]
    assert code == 2 and advice == f'dra-nb data check {shlex.quote(str(table))}'
    code, out, _ = call(*shlex.split(advice)[1:])
    assert code == 2 and 'is not there: 4 of 4' in out


@pytest.mark.parametrize('content, why', [
    (bytes(900), 'cannot be read as an image'), (b'<!DOCTYPE html><p>404', 'is a web page')])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_damaged_images_are_found_before_training(split, content, why, tmp_path, tiny, call,
                                                  monkeypatch):
    "By fit in the shots, by bench in the test list, too; with a line that lists them."
    trained = []
    monkeypatch.setattr('dra_nb.training.fit', lambda *given, **more: trained.append(given))
    monkeypatch.setattr('dra_nb.evaluation.fit', lambda *given, **more: trained.append(given))
    monkeypatch.setattr('dra_nb.commands.adapt._warn_of_chance', lambda *given: None)
    rows = [(f'{part}/{k}.png', 'abcd'[k], part) for k in range(4) for part in ('train', 'test')]
    for part in ('train', 'test'):
        paint(tmp_path/part, 0, 4)
    bad = tmp_path/split/'2.png'
    bad.write_bytes(content)
    table = tmp_path/'own.csv'
    table.write_text('\n'.join(map(','.join, [('path', 'class', 'split'), *rows]))+'\n')
    common = '--shots', 1, '--pretrained', tiny[0], '--out', tmp_path/'out'
    bench = ('bench', '--datasets', table, '--seeds', 1, 2, '--workers', 1, '--methods', 'adapter',
             *common)
    if split == 'train':
        words = 'fit', table, *common
    else:
        words = bench
    code, out, err = call(*words)
    last = err.splitlines()[-1]
    assert (code, out, trained) == (2, '', []) and not (tmp_path/'out').exists(), err
    assert last.startswith('dra-nb: images: 1 of ') and f'{bad}, which {why}' in last
    code, out, _ = call(*shlex.split(last.split('`')[1])[1:])
    assert code == 2 and str(bad) in out


def test_only_what_a_run_reads_is_opened(tmp_path, tiny, call, monkeypatch):
    "The shots of every seed and the test list, not the whole training list; targets, too."
    for part in ('train', 'test'):
        for k, name in enumerate('abcd'):
            paint(tmp_path/'own'/part/name, k, 9)
    paint(tmp_path/'other'/'test'/'a', 0, 3)
    paint(tmp_path/'other'/'test'/'b', 1, 3)
    paint(tmp_path/'other'/'train'/'a', 0, 3)
    paint(tmp_path/'other'/'train'/'b', 1, 3)
    opened = []
    monkeypatch.setattr('dra_nb.data.images._head_problem', lambda path: opened.append(path) or '')
    monkeypatch.setattr('dra_nb.bench.runs.run_missing', lambda runs, *more: sys.exit(7))
    common = ('bench', '--datasets', tmp_path/'own', '--methods', 'zero-shot', 'adapter', '--shots',
              1, '--seeds', 1, 2, '--pretrained', tiny[0], '--out', tmp_path/'r')
    low = '--set', 'start=3'              # the protocol starts at block 7; the tiny CLIP has 4
    across = '--protocol', 'cross', '--targets', tmp_path/'other', *low
    for more, tests in (((), 36), (across, 42)):
        opened.clear()
        assert call(*common, *more)[0] == 7
        kinds = [Path(path).parts[-3] for path in opened]
        assert len(opened) == len(set(opened)) and kinds.count('test') == tests
        assert 2 <= kinds.count('train') <= 8           # of 36


def test_a_name_that_is_no_text_ends_nothing(tmp_path, tiny, call):
    for name in ('a.png', '\udcff.png'):
        Image.new('RGB', (20, 20)).save(tmp_path/name)
    code, out, _ = call('predict', tmp_path, '--classes', 'cat,dog', '--pretrained', tiny[0])
    assert code == 0 and len(out.splitlines()) == 2 and '\\udcff.png' in out


def test_weights_that_are_a_file_or_damaged(tmp_path, trained, tiny, own, call):
    words = 'evaluate', own, '--pretrained', tiny[0], '--weights'
    code, _, err = call(*words, trained/'weights.safetensors')
    assert code == 2 and 'which is a file' in err
    tensors, facts = read_tensors(trained/'weights.safetensors')
    facts['dra_nb']['classnames'] = 5
    write_tensors(tmp_path/'weights.safetensors', tensors, facts)
    code, _, err = call(*words, tmp_path)
    assert code == 2 and 'classnames are 5' in err


def test_weights_of_another_run_stay(tmp_path, own, tiny, call):
    "The same run again may write over its own."
    words = 'fit', own, '--shots', 1, '--train', 'epochs=1', '--out', tmp_path, '--pretrained'
    assert call(*words, tiny[0])[0] == 0
    before = (tmp_path/'weights.safetensors').read_bytes()
    for changes, what in ((('--seed', 2), 'seed'), (('--method', 'adapter'), 'method'),
                          (('--lr', '.5'), 'train')):
        code, _, err = call(*words, tiny[0], *changes)
        assert code == 2 and 'holds weights of another run (other: ' in err and what in err
    code, _, err = call(*words, tiny[1])
    assert code == 2 and 'other: clip)' in err
    for names, what in ((sorted(path.name for path in own.iterdir()), '(other: data)'),
                        (('black', 'white'), '(other: data, classnames, images)')):
        other = tmp_path/what/own.name             # another set of the same name
        for k, name in enumerate(names):
            paint(other/name, k+50)
        code, _, err = call('fit', other, *words[2:], tiny[0])
        assert code == 2 and what in err, err
    assert (tmp_path/'weights.safetensors').read_bytes() == before
    code, _, err = call(*words, tiny[0])
    assert code == 0 and f'{tmp_path} holds this run: it is trained again' in err, err


def test_text_in_place_of_openai_weights(broken, call):
    code, _, err = call('evaluate', 'vehicles', '--model', 'ViT-B-32-quickgelu', '--pretrained',
                        broken/'text.txt')
    assert code == 2 and 'it is no safetensors, TorchScript or PyTorch weights file' in err


def test_times_of_a_part_do_not_hide_those_of_all_rows(tmp_path, call):
    "The last whole measurement is shown; without one the last, and the rows that it lacks."
    def add(value, *labels):
        facts = dict(parameters=1, epochs=1, train=value, inference=value)
        rows = {label: facts for label in labels}
        record = dict(model='glyph-clip', pretrained=None, device='a GPU', rows=rows)
        with open(tmp_path/'efficiency.jsonl', 'a') as f:
            f.write(json.dumps(record)+'\n')

    words = ('paper', 'table6', '--done', '--format', 'csv', '--out', tmp_path, '--methods')
    add(111, 'coop', 'maple')
    add(222, 'coop')
    code, out, err = call(*words, 'coop', 'maple')
    assert code == 0 and out.count(',111,') == 4 and ',222,' not in out
    assert err.startswith('dra-nb: missing: 66 of 66 runs (coop 33 of 33, maple 33 of 33); ')
    assert ',222,' in call(*words, 'coop')[1]
    code, out, err = call(*words, 'coop', 'kgcoop')
    lacking = 'efficiency.jsonl: no times of kgcoop; without --done they are measured\n'
    assert code == 0 and ',222,' in out and lacking in err
    code, out, err = call(*words, 'kgcoop')
    assert code == 2 and 'done: got no times of glyph-clip' in err and not out


@pytest.mark.parametrize('command, said', [
    ('speed', 'stopped'), ('fit vehicles', 'stopped; the same command goes on from here')])
def test_what_is_said_at_ctrl_c(command, said, call, monkeypatch):
    def stop(args):
        raise KeyboardInterrupt

    name = command.split()[0]
    monkeypatch.setitem(COMMANDS, name, replace(COMMANDS[name], run=stop))
    assert call(*command.split()) == (130, '', f'dra-nb: {said}\n')


# Mistakes

MISTAKES = {
    'unknown data set': ('evaluate nowhere', "unknown data set 'nowhere'"),
    'public data set without its folder': (
        'bench --datasets imagenet --out {tmp}/r', 'not shipped'),
    'public data set that is not there': ('evaluate dtd --root {tmp}', 'no folder dtd'),
    'unknown model': ('evaluate vehicles --model ViT-Z --pretrained x', 'ViT-Z'),
    'no weights for the model': (
        'fit vehicles --model ViT-B-16-quickgelu --out {tmp}/w', 'random weights'),
    'tower that cannot be adapted': (
        'predict {good} --classes cat,dog --model RN50 --pretrained openai', 'ResNet'),
    'device that is none': ('predict {good} --classes cat,dog --device foo', "device: got 'foo'"),
    'device in capitals': ('predict {good} --classes cat,dog --device CPU', "device: got 'CPU'"),
    'device without storage': ('evaluate vehicles --device meta', "device: got 'meta'"),
    'device of a negative number': (
        'fit vehicles --out {tmp}/w --device cuda:-1', "device: got 'cuda:-1'"),
    'unknown method': ('fit vehicles --method magic --out {tmp}/w', "method: got 'magic'"),
    'unknown method in bench': ('bench --methods magic --out {tmp}/r', "method: got 'magic'"),
    'unknown preset': ('fit vehicles --preset best --out {tmp}/w', "preset: got 'best'"),
    'unknown setting': ('fit vehicles --set rang=8 --out {tmp}/w', 'did you mean rank'),
    'setting that is no pair': ('fit vehicles --set rank --out {tmp}/w', "set: got 'rank'"),
    'bad setting': ('fit vehicles --set rank=0 --out {tmp}/w', 'rank: got 0'),
    'learning rate, in short': ('fit vehicles --lr inf --out {tmp}/w', 'lr: got inf'),
    'epochs, in short': ('fit vehicles --epochs {many} --out {tmp}/w', 'epochs: got 999'),
    'bad learning rate': ('fit vehicles --train lr=-1 --out {tmp}/w', 'lr: got -1'),
    'infinite learning rate': ('fit vehicles --train lr=inf --out {tmp}/w', 'lr: got inf'),
    'huge learning rate': ('fit vehicles --train lr=1e39 --out {tmp}/w', 'lr: got 1e+39'),
    'epochs twice': ('fit vehicles --epochs 1 --train epochs=2 --out {tmp}/w',
                     'train: got epochs=2 and --epochs 1'),
    'two rates': ('fit vehicles --train lr=1 lr=2 --out {tmp}/w', 'train: got lr=1 and lr=2'),
    'no epochs': ('fit vehicles --train epochs=0 --out {tmp}/w', 'epochs: got 0'),
    'epochs of 23 digits': ('fit vehicles --train epochs={many} --out {tmp}/w', 'epochs: got 999'),
    'seed beyond 64 bits': (
        'fit vehicles --seed 99999999999999999999 --out {tmp}/w', 'seed: got 999'),
    'negative seed in bench': ('bench --seeds 1 -1 --out {tmp}/r', 'seeds: got -1'),
    'no shots': ('fit {own} --shots 0 --out {tmp}/w', 'shots: got 0'),
    'no folder named': ('fit vehicles', 'out: not given'),
    'no weights file': (
        'evaluate vehicles --pretrained {tmp}/none.safetensors', 'none.safetensors'),
    'no weights file in bench': (
        'bench --datasets {own} --pretrained {tmp}/none --out {tmp}/r', 'which is not a file'),
    'no word after --weights': ('evaluate vehicles --weights=', "weights: got ''"),
    'no adapters': ('evaluate vehicles --weights {tmp} {clip}', 'weights.safetensors'),
    'corrupt image': ('predict {bad} --classes cat,dog {clip}', 'bad.png, which cannot be read'),
    'missing image': ('predict {tmp}/none.png --classes cat,dog {clip}', 'none.png'),
    'folder without images': ('predict {tmp} --classes cat,dog {clip}', 'holds no images'),
    'one class': ('predict {good} --classes cat {clip}', 'at least 2'),
    'no classes': ('predict {good} {clip}', 'classes: not given'),
    'a list that is not there': (
        'predict {good} --classes missing.txt {clip}', 'no file missing.txt'),
    'two names in one prompt': ('predict {good} --classes Cat,cat {clip}', 'cat'),
    'bad template': ('predict {good} --classes cat,dog --template photo {clip}', 'template'),
    'template with a name': (
        'predict {good} --classes cat,dog --template {{}}{{x}} {clip}', 'template'),
    'template with a format': (
        'predict {good} --classes cat,dog --template {{!r}} {clip}', 'template'),
    'empty class folder': ('fit {empty} --out {tmp}/w {clip}', 'holds no images'),
    'one class folder': ('fit {single} --out {tmp}/w {clip}', '1 class folder'),
    'nothing to train': (
        'fit {own} --shots 2 --method zero-shot --out {tmp}/w', 'nothing to train'),
    'corrupt images in a check': ('data check {torn}', 'in 1 of 1 data sets: torn'),
    'a folder in place of a file of results': ('evaluate vehicles --out {own}', 'no regular file'),
    'results below a file': ('evaluate vehicles --out {text}/r', 'text.txt is no folder'),
    'weights below a file': ('fit {own} --out {text}/w {clip}', 'text.txt is no folder'),
    'saved weights in a file': (
        'bench --datasets {own} --out {tmp}/r --save {text} {clip}', 'save: got'),
    'times below a file': ('speed --out {text}/r', 'text.txt is no folder'),
    'speed of no such model': ('speed --model ViT-Z --out {tmp}/r', 'ViT-Z'),
    'demo of no such set': ('demo --dataset nowhere --out {tmp}/d', "unknown data set 'nowhere'"),
    'text in place of weights': ('evaluate vehicles --pretrained {text}', 'text.txt is no file of'),
    'text in place of an image': (
        'predict {text} --classes cat,dog {clip}', 'text.txt, which cannot be read as an image'),
    'an image in place of a list': (
        'predict {good} --classes {good} {clip}', 'good.png: cannot be read as'),
    'a name twice': ('predict {good} --classes cat,cat,dog {clip}', "got 'cat' 2 times"),
    'an empty name': ('predict {good} --classes cat,,dog {clip}', 'an empty name'),
    'settings that no method has': ('bench --methods zero-shot --set rank=4 --out {tmp}/r',
                                    'set: got rank=4, allowed are none'),
    'bad template in fit': ('fit {own} --shots 1 --template photo --out {tmp}/w {clip}',
                            "template: got 'photo'"),
    'bad template with --show': ('fit food --show --template {{0}}', "template: got '{0}'"),
    'unknown model with --show': ('fit food --show --model nope', "model: got 'nope'"),
    'a place that takes no folder': ('fit {own} --out /proc/x {clip}',
                                     'out: cannot write to /proc/x: '),
    'another mistake without a folder': ('fit {own} --method draa', 'did you mean dra?'),
    'the folder of the pictures': ('fit {own} --out {own} {clip}', 'which holds files that no'),
    'a file that is no data set': ('fit {text} --out {tmp}/w {clip}', 'does not end in .csv'),
    'a range of seeds': ('bench --seeds 1-3 --out {tmp}/r', "seeds: got '1-3', allowed whole"),
    'shots in words': ('fit {own} --shots few --out {tmp}/w', "shots: got 'few', allowed whole"),
    'a share that is no number': ('paper table1 --plan --share nan', 'share: got nan'),
    'a sentence where one is learned': (
        'fit {own} --method cocoop --template {{}}. --out {tmp}/w {clip}', 'sentence is learned'),
    'a sentence where a guide stands': (
        'fit oxford_pets --method kgcoop --template {{}}. --out {tmp}/w {clip}', 'its guide is'),
    'steps of a method without any': (
        'fit {own} --method tip-adapter --epochs 77 --out {tmp}/w {clip}', 'epochs: got 77, which'),
    'a field that one method does not read': (
        'bench --methods dra lfa --datasets {own} --train warmup_epochs=1 --out {tmp}/r {clip}',
        'lfa: warmup_epochs: got 1, which'),
    'numbers with commas': (
        'fit vehicles --train area=a,b --out {tmp}/w', "area: got 'a,b', allowed numbers with"),
    'text in place of JSON lines': ('evaluate vehicles --out {text}', 'is no JSON object'),
    'bad value of a tuple': (
        'fit {own} --shots 2 --set ratios=a --out {tmp}/w {clip}', "ratios: got 'a'"),
    'no batch': (
        'fit {own} --shots 2 --train batch_size=0 --out {tmp}/w {clip}', 'batch_size: got 0'),
    'check of a text file': ('data check {text}', 'text.txt'),
    'check of an empty folder': ('data check {tmp}', '0 class folder(s)'),
    'no steps': ('pretrain --steps 0 --device cpu --out {tmp}/w', 'steps: got 0'),
    'no weights to start from': (
        'pretrain --steps 5 --start {tmp}/none.safetensors --device cpu --out {tmp}/w',
        'none.safetensors'),
    'a foreign file to start from': (
        'pretrain --steps 5 --start {bad} --device cpu --out {tmp}/w',
        'bad.png is no file of glyph-clip'),
    'foreign weights': ('evaluate vehicles --pretrained {bad}', 'bad.png is no file of glyph-clip'),
    'no folder of icons': (
        'pretrain --steps 5 --icons {empty} --device cpu --out {tmp}/w', 'which has no icons.json'),
    'a foreign folder of icons': (
        'pretrain --steps 5 --icons {own} --device cpu --out {tmp}/w', 'icons: got'),
    'no workers': ('pretrain --steps 5 --workers 0 --device cpu --out {tmp}/w', 'workers: got 0'),
    'no minutes': ('pretrain --minutes 0 --device cpu --out {tmp}/w', 'minutes: got 0'),
    'a file in place of a folder to pre-train in': (
        'pretrain --steps 5 --device cpu --out {text}', 'is no folder'),
}


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    "Folders and files that are wrong in one way each."
    data = tmp_path_factory.mktemp('broken')
    torn = [f'torn/{name}/{i}.png' for name in 'ab' for i in range(6)]
    sound = ['good.png', 'single/red/1.png', 'empty/red/1.png', 'empty/red/2.png']
    for i, name in enumerate(sound+torn):
        (data/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 20), (i, 0, 0)).save(data/name)
    (data/'empty'/'blue').mkdir()
    (data/'bad.png').write_bytes(b'no image')
    (data/'text.txt').write_text('hello\n')
    for path in (data/'torn').rglob('*.png'):
        path.write_bytes(path.read_bytes()[:40])
    return data


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(mistake, tmp_path, tiny, own, broken, call):
    line, why = MISTAKES[mistake]
    names = {name: broken/name for name in ('empty', 'single', 'torn')}
    names.update(tmp=tmp_path, clip=f'--pretrained {tiny[0]}', own=own, many=23*'9')
    names.update(bad=broken/'bad.png', text=broken/'text.txt', good=broken/'good.png')
    code, _, err = call(*line.format(**names).split())
    assert code == 2 and why in err and err.startswith('dra-nb: '), err
    assert err.count('\n') == 1, err                    # no advice before a refusal
    assert files(tmp_path) == []


def test_one_fit_at_a_time_in_a_folder(tmp_path, own, tiny, call):
    "A second one is refused while the first is at work; one that was killed is in nobody's way."
    words = ('fit', own, '--shots', 1, '--train', 'epochs=40', '--out', tmp_path/'w',
             '--pretrained', tiny[0])
    first = process(*words, cwd=tmp_path)
    try:
        wait_for((tmp_path/'w'/'checkpoint.pt').exists, pause=.01)
        first.send_signal(signal.SIGSTOP)                      # it lives, and is not yet done
        before = files(tmp_path/'w')
        assert 'checkpoint.pt' in before
        code, out, err = call(*words)
        assert (code, out, files(tmp_path/'w')) == (2, '', before), err
        assert err.splitlines()[-1].startswith('dra-nb: out: another dra-nb fit is writing to')
    finally:
        first.kill()
        first.wait()
    code, _, err = call(*words)
    assert code == 0 and files(tmp_path/'w') == ['.lock', 'run.json', 'weights.safetensors'], err


def test_training_that_diverges_keeps_the_last_good_weights(tmp_path, tiny, own, call):
    clip = '--pretrained', tiny[0]
    code, _, err = call('fit', own, '--shots', 2, '--set', 'scale=1000', '--train', 'lr=1e6',
                        'epochs=9', '--out', tmp_path/'w', *clip)
    assert code == 2 and 'at step' in err.splitlines()[-1], err
    left = [name for name in files(tmp_path) if name not in ('w/.lock', 'w/checkpoint.pt')]
    assert left == ['w/last-good/run.json', 'w/last-good/weights.safetensors']
    assert call('evaluate', own, '--weights', tmp_path/'w'/'last-good', *clip)[0] == 0


def test_weights_of_another_clip(trained, tiny, own, call):
    "Of the same shapes, and of others."
    for other in tiny[1:]:
        code, out, err = call('evaluate', own, '--weights', trained, '--pretrained', other)
        assert code == 2 and 'were trained on glyph-clip' in err and out == ''


def test_a_wrong_name_leaves_the_other_reports(call, tmp_path):
    "All sets are reported, and the command fails with the count."
    wrong = str(tmp_path/'nothing')
    code, out, err = call('data', 'check', 'vehicles', wrong, 'food')
    lines = out.splitlines()
    assert code == 2 and lines[0].startswith('vehicles ') and lines[-1].startswith('food ')
    assert lines[1].endswith('not usable') and 'dataset: unknown data set' in lines[2], out
    assert err.splitlines()[-1].endswith(f'1 kind(s) of problem in 1 of 3 data sets: {wrong}')
