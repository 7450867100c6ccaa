"The paper's tables by one command: a part of Table 1 from end to end, plans, and mistakes."
import csv
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_images, save_tiny_clip
from miniature import write

from dra_nb.bench.paper import (TABLES, find_table, in_table1, paper_number, plan_table,
                                table_rows)
from dra_nb.bench.results import Record, read_results, write_record
from dra_nb.cli import main
from dra_nb.data import REAL, glyphs

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')       # miniatures are no whole sets


@pytest.fixture(scope='module')
def part(tmp_path_factory):
    "Words of a part of Table 1: two rows, two public sets in miniature, one seed, a tiny CLIP."
    folder = tmp_path_factory.mktemp('paper')
    for name in ('oxford_pets', 'dtd'):
        write(name, folder/'DATA', train=20)
    save_tiny_clip(folder/'tiny.safetensors')
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


ROWS = ', '.join(line.label for line in find_table('table1').lines_for('glyph-clip'))
SETS = f'{", ".join((*glyphs.SETS, *glyphs.SHIFTS))}; with a root {", ".join(REAL)}'


@pytest.mark.parametrize('words, why', [
    (['table7'], f"table: got 'table7', allowed are {', '.join(TABLES)}"),
    (['table1', '--methods', 'magic'], f"methods: got 'magic', allowed for table1 are {ROWS}"),
    (['table1', '--seeds', '1-3'],
     "seeds: got '1-3', allowed whole numbers with spaces between, such as 1 2 3"),
    (['table1', '--seeds', '-1'], f'seeds: got -1, allowed whole numbers from 0 to {2**63-1}'),
    (['table1', '--root', ''], "root: got '', allowed is a word that is not empty"),
    (['table1', '--datasets', 'atlantis'], "name: unknown data set 'atlantis' (did you mean "
     f"'plants'?); allowed: {SETS}; or your own folder of class folders or CSV file"),
    (['table1', '--format', 'word'],
     "format: got 'word', allowed 'markdown', 'latex', 'text', 'csv'"),
    (['table1', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai'],
     "root: not given; ViT-B-16-quickgelu is run on the paper's data sets, which are in a folder "
     '(--root DATA); --plan needs none'),
    (['table1', '--plan', '--datasets', 'food', '--tflops', '0'],
     'tflops: got 0.0, allowed finite numbers above 0'),
    (['table1', '--tflops', '5'], 'tflops: got 5 without --plan, which alone uses it'),
    (['table1', '--plan', '--done'], 'done: got --plan as well, allowed is one of them'),
    (['table1', '--done', '--out', __file__], f'out: got {__file__!r}, which is no folder; allowed '
     'is a folder, or a new name'),
    (['fig4', '--plan', '--datasets', 'vehicles', 'food'],
     'datasets: got vehicles, food, allowed for fig4 is one'),
    (['fig4', '--plan', '--seeds', '1', '2'], 'seeds: got 1, 2, allowed for fig4 is one'),
])
def test_mistakes_are_one_line(words, why, capsys):
    assert main(['paper', *words]) == 2
    said = capsys.readouterr()
    assert said.err == f'dra-nb: {why}\n' and said.out == ''


@pytest.mark.parametrize('table', ['table2', 'table3'])
def test_a_folder_as_target(table, tmp_path):
    "It is shown by the name of its set."
    folders = [tmp_path/'mine', tmp_path/'other']
    for folder in folders:
        for k in range(2):
            save_images(folder/f'class {k}', 4, 10*k, (20, 20))
    plan = plan_table(table, ['zero-shot'], list(map(str, folders)), [1])
    run, = plan.runs
    record = Record(run.facts(), dict(general=10., mine=20., other=40.), {}, {}, {}, {}, 'cpu')
    rows = table_rows(plan, plan.labelled([record]))
    found = {row['block']: row['accuracy'][0] for row in rows}
    assert found == {'average of 2': 30., 'general': 10., 'mine': 20., 'other': 40.}


def test_an_average_over_other_sets_has_no_printed_number():
    "However many they are."
    plan = plan_table('table1', ['zero-shot'])
    row = dict(block='average of 11', line=plan.lines[0])
    assert paper_number(plan, row, 'new').value == 74.22
    own = replace(plan, sets=tuple('abcdefghijk'))
    assert paper_number(own, row, 'new') is None
    assert paper_number(replace(plan, sets=plan.sets[:10]), row, 'new') is None


def test_repeated_seeds_count_once(capsys):
    plan = plan_table('table1', ['coop'], ['food'], [1, 1, 2])
    assert plan.seeds == (1, 2) and len(plan.pairs) == len(plan.runs) == 2
    text = say(capsys, 'paper', 'table1', '--plan', '--model', 'ViT-B-16-quickgelu', '--pretrained',
               'openai', '--methods', 'coop', '--datasets', 'dtd', '--seeds', '1', '1')
    total = next(line for line in text.splitlines() if line.startswith('| all'))
    assert total.split('|')[2].strip() == '1'


def test_the_command_has_what_differs_from_its_own_default(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = say(capsys, 'paper', 'table1', '--done', '--methods', 'coop', '--datasets', 'food',
               '--seeds', '1', '--out', 'glyph-clip')
    assert 'dra-nb paper table1 --methods coop --datasets food --seeds 1 --out glyph-clip' in text


def test_gains_in_table1_of_what_is_there(tmp_path):
    "A row whose other method lacks is left out, and so are sets that only one of them has."
    def add(method, dataset, new):
        run = dict(protocol='base-to-new', method=method, dataset=dataset, seed=1,
                   train=dict(epochs=1))
        metrics = dict(base=50., new=new, hm=50.)
        write_record(tmp_path, Record(run, metrics, {}, {}, {}, {}, 'cpu'))

    add('coop', 'food', 60.)
    assert in_table1('coop', folder=tmp_path).startswith('Not measured yet: `dra-nb paper table1')
    add('adapter-recommended', 'tools', 50.)
    assert in_table1('coop', folder=tmp_path).startswith('Not measured yet: `dra-nb paper table1')
    add('adapter-recommended', 'food', 50.)
    text = in_table1('coop', folder=tmp_path)
    first, *lines = text.splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in (first, lines[1])]
    assert cells[0] == ['points', 'base', 'new', 'HM', 'sets', 'seeds']
    assert cells[1] == ['coop − adapter', '+0.00', '+10.00', '+0.00', '1', '1']
    add('zero-shot', 'food', 55.)
    assert in_table1('coop', folder=tmp_path).startswith('**On base classes `coop` ')


def test_an_empty_root(part, capsys, tmp_path):
    words = [*part[:part.index('--root')], '--root', str(tmp_path), '--out', str(tmp_path/'out')]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'oxford_pets' in said
    assert not (tmp_path/'out').exists()
