"""What README tells people to type, typed."""
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file

from dra_nb import evaluation
from dra_nb.cli import build_parser, main
from dra_nb.data import REAL
from miniature import write

README = Path(__file__).parents[1]/'README.md'
MODEL = ['--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai']
SMALL = dict(fit=['--shots', '2', '--epochs', '1'],
             bench=['--datasets', 'oxford_pets', '--methods', 'zero-shot', 'dra', '--seeds', '1', '--shots', '2', '--workers', '1'])


def commands():
    "The words of every line of README that calls the program."
    return [shlex.split(line)[1:] for block in re.findall(r'```bash\n(.*?)```', README.read_text(encoding='utf-8'), re.S)
            for line in block.splitlines() if line.startswith('dra-nb ')]


def test_script(tmp_path):
    "The script runs as it stands and prints three percentages."
    script, = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.S)
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r'base ([\d.]+), new ([\d.]+), harmonic mean ([\d.]+)', done.stdout)
    base, new, mean = map(float, found.groups())
    assert 10 < base < 100 and 10 < new < 100 and abs(mean - 2*base*new/(base+new)) < .1
    assert not list(tmp_path.iterdir())              # it writes nothing


def test_commands_are_understood():
    "From the check of a data set to the table, with OpenAI's ViT-B/16."
    parser = build_parser()
    parsed = [parser.parse_args(words) for words in commands()]
    assert [o.command for o in parsed] == ['data', 'data', 'fit', 'evaluate', 'predict', 'bench']
    assert [o.action for o in parsed[:2]] == ['download', 'check']
    assert all(words[i:i+4] == MODEL for words in commands()[2:] for i in [words.index('--model')])
    assert set(parsed[-1].datasets) == {n for n in REAL if not n.startswith('imagenet') or n == 'imagenet'} and len(parsed[-1].datasets) == 11


def test_commands_on_a_miniature(tmp_path, monkeypatch, capsys):
    "Typed as they stand, but few shots, one epoch, and for OpenAI's weights a file with random ones."
    monkeypatch.chdir(tmp_path)
    write('oxford_pets', 'DATA')
    shutil.copy('DATA/oxford_pets/images/Abyssinian_9.jpg', 'cat.jpg')
    torch.manual_seed(0)
    state = open_clip.create_model('ViT-B-16-quickgelu').state_dict()
    save_file({k: v.half().contiguous() for k, v in state.items()}, 'random.safetensors')
    said = {}
    try:
        for words in commands()[1:]:
            command = words[1] if words[0] == 'data' else words[0]
            code = main(['random.safetensors' if w == 'openai' else w for w in words] + SMALL.get(command, []))
            said[command], err = capsys.readouterr()
            assert code == 2*(command == 'check'), err
    finally:
        evaluation._clip.cache_clear()
        Path('random.safetensors').unlink()                             # 300 MB
    assert [', expected ' in line for line in said['check'].splitlines()] == [False, True, True, True, True]       # small, and nothing else
    assert sum(t.numel() for t in load_file('weights/pets/adapters.safetensors').values()) == 716_800               # the paper's number
    assert said['fit'].startswith('dra on 4 images of 2 classes') and said['evaluate'].startswith('oxford_pets-partial, new classes: ') and '% of 6 images (2 classes)' in said['evaluate']
    assert re.fullmatch(r'cat.jpg  (abyssinian|american_bulldog) [\d.]+ %  (abyssinian|american_bulldog) [\d.]+ %\n', said['predict'])
    zero, dra = [json.loads(line) for line in Path('results.jsonl').read_text().splitlines()]
    assert zero['settings']['data'] == {**dra['settings']['data'], 'template': 'a photo of a {}, a type of pet.'} and dra['settings']['data']['template'] == 'a photo of a {}.'
    assert zero['settings']['weights'] == dra['settings']['weights'] != 'openai' and '| oxford_pets-partial | dra ' in said['bench']
