"""What README and the page it sends people to tell them to type, typed."""
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dra_nb.bench import runs
from dra_nb.bench.paper import find_table
from dra_nb.cli import COMMANDS, build_parser, main
from dra_nb.data import REAL
from dra_nb.files import read_tensors
from dra_nb.methods import METHODS
from miniature import write

ROOT = Path(__file__).parents[1]
README = ROOT/'README.md'
FIRST_STEPS = ROOT/'nbs/1c_first_steps.ipynb'
MODEL = ['--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai']
SMALL = dict(fit=['--shots', '2', '--train', 'epochs=1'],
             paper=['--datasets', 'oxford_pets', '--methods', 'zero-shot', '--seeds', '1',
                    '--workers', '1'])


def first_steps():
    "The prose of the page."
    cells = json.loads(FIRST_STEPS.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'markdown')


def blocks(language):
    "What stands between the fences of the page."
    return re.findall(rf'```{language}\n(.*?)```', first_steps(), re.S)


def calls(text):
    "The words of every line that calls the program."
    lines = text.replace('\\\n', ' ').splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith('dra-nb ')]


def commands():
    "Those of the page."
    return calls(''.join(blocks('bash')))


def run(script, folder):
    "What a script prints."
    done = subprocess.run([sys.executable, '-c', script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_script(tmp_path):
    "The script runs as it stands, prints three percentages and writes nothing."
    script, = blocks('python')
    found = re.search(r'base ([\d.]+), new ([\d.]+), harmonic mean ([\d.]+)', run(script, tmp_path))
    base, new, mean = map(float, found.groups())
    assert 35 < base < 100 and 40 < new < 100 and abs(mean - 2*base*new/(base+new)) < .1
    assert not list(tmp_path.iterdir())


def test_script_gives_the_same_numbers_each_time(tmp_path):
    "Shortened: two shots, two epochs, and the loss to the last digit."
    script, = blocks('python')
    short = script.replace('few_shot(base.train, 16, seed=1)', 'few_shot(base.train, 2, seed=1)')
    short = short.replace('seed=1)\nb = ', 'TrainConfig(epochs=2), seed=1)\nb = ')
    lines = [line for line in short.splitlines() if not line.startswith(('b = ', 'n = ', 'print'))]
    short = '\n'.join(lines).replace('import fit', 'import TrainConfig, fit').replace('\nfit(', '\nh = fit(')
    assert short.count('TrainConfig') == 2 and 'h = fit' in short
    model_and_data = 'for _ in range(2):\n' + '\n'.join('    '+line for line in short.splitlines())
    losses = run(model_and_data+"\n    print(h[-1]['loss'])", tmp_path).split()
    assert len(losses) == 2 and losses[0] == losses[1]


def test_readme_names_the_page_and_all_methods():
    text = README.read_text(encoding='utf-8')
    assert FIRST_STEPS.name in text
    assert [name for name in METHODS if f'`{name}`' not in text] == []


def test_commands_of_readme_are_understood():
    "Own pictures, with a CLIP for photographs; what is trained is what classifies."
    parser = build_parser()
    fit, predict = (parser.parse_args(words) for words in calls(README.read_text(encoding='utf-8')))
    assert (fit.command, predict.command) == ('fit', 'predict')
    assert fit.method in METHODS and fit.out == predict.weights
    assert fit.model == predict.model == MODEL[1] and fit.pretrained == predict.pretrained == MODEL[3]


def test_commands_are_understood():
    "From the check of a data set to the table, with OpenAI's ViT-B/16; and all jobs are named."
    parser = build_parser()
    parsed = [parser.parse_args(words) for words in commands()]
    names = [o.command for o in parsed]
    assert names == ['data', 'data', 'fit', 'evaluate', 'predict', 'paper']
    assert [o.action for o in parsed[:2]] == ['download', 'check']
    for words in commands()[2:]:
        i = words.index('--model')
        assert words[i:i+4] == MODEL
    sets, _ = find_table(parsed[-1].table).sets_for(real=True)
    assert len(sets) == 11 and set(sets) < set(REAL)
    line, = re.findall(r'^\| `dra-nb --help`.*', first_steps(), re.M)
    assert set(re.findall(r'`(\w+)`', line)) == set(COMMANDS)


@pytest.fixture
def random_weights(tmp_path, monkeypatch):
    "A miniature of Oxford Pets, and a file of weights in place of OpenAI's."
    monkeypatch.chdir(tmp_path)
    write('oxford_pets', 'DATA', train=16)                          # shots of the paper
    shutil.copy('DATA/oxford_pets/images/Abyssinian_9.jpg', 'cat.jpg')
    torch.manual_seed(0)
    state = open_clip.create_model('ViT-B-16-quickgelu').state_dict()
    save_file({k: v.half().contiguous() for k, v in state.items()}, 'random.safetensors')
    yield 'random.safetensors'
    runs._clip.cache_clear()
    Path('random.safetensors').unlink()                             # 300 MB


def test_commands_on_a_miniature(random_weights, capsys):
    "Typed as they stand, but few shots, one epoch, and for OpenAI's weights a file with random ones."
    said = {}
    for words in commands()[1:]:
        command = words[1] if words[0] == 'data' else words[0]
        typed = [random_weights if word == 'openai' else word for word in words]
        code = main(typed + SMALL.get(command, []))
        said[command], err = capsys.readouterr()
        assert code == 2*(command == 'check'), err
    problems = said['check'].splitlines()[1:]
    assert problems and all('expected' in line for line in problems)          # small, and nothing else
    tensors, metadata = read_tensors('weights/pets/weights.safetensors')
    assert sum(t.numel() for t in tensors.values()) == 716_800                # the paper's number
    assert metadata['dra_nb']['preset'] == 'likely'
    assert said['fit'].startswith('dra (likely) on 4 images of 2 classes')
    assert 'new classes: ' in said['evaluate'] and '% of 6 images (2 classes)' in said['evaluate']
    assert re.fullmatch(r'cat.jpg(  (abyssinian|american_bulldog) [\d.]+ %){2}\n', said['predict'])
    path, = Path('results').glob('*.json')
    zero = json.loads(path.read_text())['run']
    assert zero['weights'] != 'openai' and '| zero-shot ' in said['paper']
