"The paper's tables by one command: a part of Table 1 from end to end, plans, and mistakes."
import csv
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from miniature import write

from dra_nb.bench.results import read_results
from dra_nb.cli import main
from dra_nb.weights import GlyphClipConfig, build_glyph_clip, save_glyph_clip

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')       # miniatures are no whole sets


@pytest.fixture(scope='module')
def part(tmp_path_factory):
    "Words of a part of Table 1: two rows, two public sets in miniature, one seed, a tiny CLIP."
    folder = tmp_path_factory.mktemp('paper')
    for name in ('oxford_pets', 'dtd'):
        write(name, folder/'DATA', train=20)
    shape = GlyphClipConfig(embed_dim=16, width=16, layers=8, head_width=8, context=20,
                            image_size=16)
    torch.manual_seed(0)
    facts = dict(config=dict(model=asdict(shape)))
    save_glyph_clip(build_glyph_clip(shape), folder/'tiny.safetensors', facts, torch.arange(1000))
    return ['paper', 'table1', '--methods', 'zero-shot', 'dra-recommended', '--datasets',
            'oxford_pets', 'dtd', '--seeds', '1', '--root', str(folder/'DATA'), '--pretrained',
            str(folder/'tiny.safetensors'), '--device', 'cpu', '--workers', '1', '--out',
            str(folder/'results')]


def say(capsys, *words):
    "What a command prints; it must succeed."
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def rows(text):
    "Cells of the first table."
    table = text[text.index('| data set'):].partition('\n\n')[0].splitlines()
    found = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    return found[0], found[2:]


def test_part_of_table1(part, capsys):
    first = say(capsys, *part)
    assert '[4/4]' in first and ', 0 s left)' in first and '4 of 4 runs in' in first
    head, body = rows(first)
    assert head[:5] == ['data set', 'method', 'base', 'base, paper', 'base − paper']
    assert [row[:2] for row in body] == [
        [block, method] for block in ('average of 2', 'oxford_pets', 'dtd')
        for method in ('zero-shot', 'dra-recommended')]
    assert body[2][3] == '91.17' and body[5][3] == '' and body[0][3] == ''
    assert any('**' in cell for cell in body[0]+body[1])
    assert 'dra-recommended − zero-shot' in first and 'missing' not in first
    results = Path(part[-1])
    records = {(r.method, r.dataset): r for r in read_results(results)}
    base = records['dra-recommended', 'oxford_pets'].metrics['base']
    assert body[3][2].strip('*') == f'{base:.2f}'
    before = {path: path.stat().st_mtime_ns for path in results.glob('*.json')}
    again = say(capsys, *part)
    assert rows(again) == rows(first) and '[' not in again.partition('| data set')[0]
    assert {path: path.stat().st_mtime_ns for path in results.glob('*.json')} == before


def test_what_lacks_is_said(part, capsys, tmp_path):
    say(capsys, *part)
    kept = tmp_path/'some'
    kept.mkdir()
    for path in Path(part[-1]).glob('*.json'):
        if not path.name.startswith('dra-recommended-dtd'):
            (kept/path.name).write_bytes(path.read_bytes())
    words = [*part[:-1], str(kept)]
    text = say(capsys, *words, '--done')
    assert [row[:2] for row in rows(text)[1]][-1] == ['dtd', 'zero-shot']
    line = next(line for line in text.splitlines() if line.startswith('missing'))
    assert line.startswith('missing: 1 of 4 runs (dra-recommended); dra-nb paper table1 --methods')
    assert len(list(kept.glob('*.json'))) == 3
    plan = say(capsys, *words, '--plan')
    total = next(line for line in plan.splitlines() if line.startswith('| all'))
    assert [cell.strip() for cell in total.split('|')[2:4]] == ['4', '3']
    assert len(list(kept.glob('*.json'))) == 3


def test_table_as_csv(part, capsys, tmp_path):
    say(capsys, *part)
    file = tmp_path/'table.csv'
    text = say(capsys, *part, '--done', '--format', 'csv', '--save', str(file))
    read = list(csv.DictReader(file.read_text().splitlines()))
    assert len(read) == 6 and read[0]['data set'] == 'average of 2' and '**' not in text
    assert text.strip() == file.read_text().strip()


def test_plan_without_the_data(capsys):
    "The sizes of public sets are published: neither images nor weights are needed."
    text = say(capsys, 'paper', 'table1', '--plan', '--model', 'ViT-B-16-quickgelu', '--pretrained',
               'openai', '--methods', 'dra-likely', 'zero-shot', '--tflops', '100')
    total = next(line for line in text.splitlines() if line.startswith('| all'))
    cells = [cell.strip() for cell in total.split('|')]
    assert cells[2:4] == ['44', '0'] and '100 TFLOP/s' in text
    twice = say(capsys, 'paper', 'table1', '--plan', '--model', 'ViT-B-16-quickgelu', '--pretrained',
                'openai', '--methods', 'dra-likely', 'zero-shot', '--tflops', '50')
    hours = [float(next(line for line in t.splitlines() if line.startswith('| all')).split('|')[6])
             for t in (text, twice)]
    assert hours[1] == pytest.approx(2*hours[0], rel=.02)


@pytest.mark.parametrize('words, why', [
    (['table7'], "table: got 'table7', allowed are table1"),
    (['table1', '--methods', 'magic'], "methods: got 'magic', allowed for table1 are zero-shot"),
    (['table1', '--seeds', 'one'], 'seeds: got one, allowed are whole numbers'),
    (['table1', '--seeds', '-1'], 'seeds'),
    (['table1', '--root', ''], "root: got ''"),
    (['table1', '--datasets', 'atlantis'], 'atlantis'),
    (['table1', '--format', 'word'], "format: got 'word'"),
    (['table1', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai'], 'root: not given'),
    (['table1', '--plan', '--datasets', 'food', '--tflops', '0'], 'tflops'),
    (['table1', '--tflops', '5'], 'tflops: got 5 without --plan'),
    (['table1', '--plan', '--done'], 'done: got --plan as well'),
    (['table1', '--done', '--out', __file__], 'which is no folder; allowed is a folder'),
    (['fig4', '--plan', '--datasets', 'vehicles', 'food'], 'datasets: got vehicles, food, allowed'),
    (['fig4', '--plan', '--seeds', '1', '2'], 'seeds: got 1, 2, allowed for fig4 is one'),
])
def test_mistakes_are_one_line(words, why, capsys):
    assert main(['paper', *words]) == 2
    said = capsys.readouterr()
    assert why in said.err and said.err.count('\n') == 1 and said.out == ''


def test_an_empty_root(part, capsys, tmp_path):
    words = [*part[:part.index('--root')], '--root', str(tmp_path), '--out', str(tmp_path/'out')]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'oxford_pets' in said
    assert not (tmp_path/'out').exists()
