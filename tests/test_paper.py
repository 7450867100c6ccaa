"The paper's tables by one command: a part of Table 1 from end to end, plans, and mistakes."
import csv
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_images, save_tiny_clip
from miniature import write

from dra_nb.bench.paper import (TABLES, difference_rows, find_table, in_table1, paper_number,
                                plan_table, published, read_table, table_rows)
from dra_nb.bench.results import Record, read_results, write_record
from dra_nb.cli import main
from dra_nb.commands.bench import RunLines
from dra_nb.data import REAL, glyphs
from dra_nb.evaluation import harmonic_mean

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
            str(folder/'tiny.safetensors'), '--device', 'cpu', '--out', str(folder/'results')]


ALONE = '--workers', '1'


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
    first = say(capsys, *part, *ALONE)
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
    again = say(capsys, *part, *ALONE)
    assert rows(again) == rows(first) and '[' not in again.partition('| data set')[0]
    assert {path: path.stat().st_mtime_ns for path in results.glob('*.json')} == before


def test_what_lacks_is_said(part, capsys, tmp_path):
    say(capsys, *part, *ALONE)
    kept = tmp_path/'some'
    kept.mkdir()
    for path in Path(part[-1]).glob('*.json'):
        if not path.name.startswith('dra-recommended-dtd'):
            (kept/path.name).write_bytes(path.read_bytes())
    words = [*part[:-1], str(kept)]
    text = say(capsys, *words, '--done')
    assert [row[:2] for row in rows(text)[1]][-1] == ['dtd', 'zero-shot']
    line = next(line for line in text.splitlines() if line.startswith('missing'))
    start = 'missing: 1 of 4 runs (dra-recommended 1 of 2); dra-nb paper table1 --methods'
    assert line.startswith(start)
    assert len(list(kept.glob('*.json'))) == 3
    plan = say(capsys, *words, '--plan')
    total = next(line for line in plan.splitlines() if line.startswith('| all'))
    assert [cell.strip() for cell in total.split('|')[2:4]] == ['4', '3']
    assert len(list(kept.glob('*.json'))) == 3


def test_table_as_csv(part, capsys, tmp_path):
    "A number a cell; what lacks is said beside it."
    say(capsys, *part, *ALONE)
    file = tmp_path/'table.csv'
    text = say(capsys, *part, '--done', '--format', 'csv', '--save', str(file))
    read = list(csv.DictReader(file.read_text().splitlines()))
    assert len(read) == 6 and read[0]['data set'] == 'average of 2' and '**' not in text
    assert text.strip() == file.read_text().strip()
    words = {'data set', 'method', 'base remark', 'new remark', 'HM remark', 'base against paper',
             'new against paper', 'HM against paper', 'which seeds'}
    for row in read:
        assert words < row.keys()
        assert all(not cell or float(cell) >= 0 for name, cell in row.items() if name not in words)
    made = {(row['seeds'], row['which seeds']) for row in read}
    assert made == {('', 'any'), ('1', '1')} and read[0]['base half'] == ''
    assert main([*part, '--datasets', 'dtd', 'oxford_pets', '--seeds', '2', '--done', '--format',
                 'csv']) == 0
    said = capsys.readouterr()
    assert said.out.strip() == '' and said.err.startswith('dra-nb: missing: 4 of 4 runs (')


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


def test_a_difference_says_its_sets_and_seeds(capsys, tmp_path):
    "A row with fewer runs is compared over fewer; pages get the columns they had."
    plan = plan_table('table1', ['cocoop', 'dra'], ['food', 'tools'], [1, 2], device='cpu')
    records = []
    for run in plan.runs:
        if run.method == 'dra-recommended' or (run.dataset, run.seed) == ('food', 1):
            record = Record(run.facts(), dict(base=60., new=50., hm=54.5), {}, {}, {}, {}, 'cpu')
            write_record(tmp_path, record)
            records.append(record)
    words = ('paper', 'table1', '--methods', 'cocoop', 'dra', '--datasets', 'food', 'tools',
             '--seeds', '1', '2', '--done', '--device', 'cpu', '--out', str(tmp_path))
    text = say(capsys, *words)
    head, body = rows(text)
    assert head[-1] == 'seeds'
    assert [row[-1] for row in body] == ['1 and 2', '1', '1 and 2', '1 and 2']
    start = '| dra-recommended − cocoop'
    line = next(line for line in text.splitlines() if line.startswith(start))
    assert [cell.strip() for cell in line.split('|')[-3:-1]] == ['1', '1']
    assert 'A difference is over the sets and seeds that both rows have' in text
    assert 'missing: 3 of 8 runs (cocoop 3 of 4)' in text
    assert not {'sets', 'seeds'} & difference_rows(plan, plan.labelled(records))[0].keys()


def test_table4_says_what_it_is_without_ranking(capsys, tmp_path):
    assert 'the order of the channels is fixed' in say(
        capsys, 'paper', 'table4', '--done', '--out', str(tmp_path))


def test_a_run_with_more_targets_will_do(capsys, tmp_path):
    plan = plan_table('table2', ['coop'], seeds=[1], device='cpu')
    run, = plan.runs
    accuracies = {name: 50. for name in ('general', *run.targets)}
    write_record(tmp_path, Record(run.facts(), accuracies, {}, {}, {}, {}, 'cpu'))
    text = say(capsys, 'paper', 'table2', '--done', '--methods', 'coop', '--datasets', 'food',
               '--seeds', '1', '--device', 'cpu', '--out', str(tmp_path))
    assert [row[0] for row in rows(text)[1]] == ['general', 'food'] and '1 of 1 runs in' in text


def test_printed_numbers_that_contradict_have_a_remark():
    "HM from base and new, and averages from their rows, as far as rounding allows."
    off, tables = .005+1e-9, defaultdict(dict)
    for (table, line, dataset, metric), number in published().items():
        if table != 'table6' and number.value is not None:
            tables[table, line][dataset, metric] = number
    for (table, line), found in tables.items():
        for (dataset, metric), number in found.items():
            if metric == 'hm':
                base, new = (found[dataset, name].value for name in ('base', 'new'))
                low, high = harmonic_mean(base-off, new-off), harmonic_mean(base+off, new+off)
                fits = low-off <= number.value <= high+off
                assert fits == (not number.remark), (table, line, dataset)
            elif dataset == 'average':
                of = [n.value for (name, kind), n in found.items()
                      if kind == metric and name not in ('average', find_source(table))]
                if of and line != 'dra':               # not all rows of DRA are printed
                    fits = abs(statistics.mean(of)-number.value) <= 2*off
                    assert fits == (not number.remark), (table, line, metric)


def find_source(table):
    "The set that Tables 2 and 3 train on, which is no part of their averages."
    return 'imagenet' if table in ('table2', 'table3') else None


@pytest.mark.parametrize('there', [False, True])
def test_plan_of_a_root_without_the_sets(there, capsys, tmp_path):
    "Published sizes will do."
    root = tmp_path/'DATA'
    if there:
        root.mkdir()
    words = ('paper', 'table1', '--plan', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai',
             '--methods', 'dra', 'coop')
    assert main([*words, '--root', str(root)]) == 0
    said = capsys.readouterr()
    lacks = f'root: got {str(root)!r}, which is no folder'
    if there:
        lacks = f'root: got {str(root)!r}, which lacks 11 of the 11 sets: imagenet, caltech101, '
    assert said.err.startswith(f'dra-nb: {lacks}') and said.err.count('\n') == 1
    assert said.err.endswith('; the plan has the published sizes\n')
    assert said.out == say(capsys, *words) and 'Hours are of products only' in said.out


def test_done_on_a_computer_without_card_and_data(part, capsys, tmp_path):
    "Records are found whatever device made them; what lacks is asked for on the same kind."
    say(capsys, *part, *ALONE)
    for record in read_results(part[-1]):
        train = dict(record.run['train'], amp='bf16')
        facts = dict(record.run, device='cuda', precision='bf16', train=train)
        write_record(tmp_path, replace(record, run=facts, device='a card'))
    words = [*part[:-4], '--out', str(tmp_path), '--done']            # without --device
    text = say(capsys, *words)
    assert rows(text) == rows(say(capsys, *part, '--done')) and '4 of 4 runs in' in text
    assert rows(say(capsys, *words, '--device', 'cuda:1')) == rows(text)
    assert '0 of 4 runs in' in say(capsys, *words, '--device', 'cpu')
    at = words.index('--root')
    away = words[:at]+words[at+2:]
    assert main([*away, '--root', str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert rows(said.out) == rows(text) and 'their images were not compared' in said.err
    next(tmp_path.glob('dra-recommended-dtd*')).unlink()
    assert '--device cuda' in next(
        line for line in say(capsys, *words).splitlines() if line.startswith('missing: 1 of 4'))
    write_record(tmp_path, next(r for r in read_results(part[-1]) if r.dataset == 'dtd'
                                and r.method == 'dra-recommended'))
    assert main(words) == 0
    told = 'runs of several devices are shown together (3 on cuda, 1 on cpu)'
    assert told in capsys.readouterr().err


def test_the_source_is_no_target(capsys):
    assert main(['paper', 'table2', '--plan', '--datasets', 'general', 'food']) == 2
    said = capsys.readouterr()
    assert said.err.startswith("dra-nb: datasets: got 'general', which table2 trains on; allowed are")
    assert ', '.join(glyphs.SETS[1:]) in said.err and said.err.count('\n') == 1


def test_all_missing_sets_in_one_message(part, capsys):
    words = [word for word in part if word not in ('oxford_pets', 'dtd')]
    at = words.index('--datasets')
    assert main([*words[:at+1], 'dtd', 'eurosat', 'ucf101', *words[at+1:]]) == 2
    said = capsys.readouterr().err
    assert 'which lacks 2 of the 3 sets: eurosat, ucf101. eurosat: no folder ' in said
    assert said.count('\n') == 1


def test_settings_that_do_not_fit_are_refused_first(part, capsys, tmp_path):
    "The CLIP has eight blocks and MaPLe's prompts go into nine: no run is made before that is said."
    words = [*part[:2], '--methods', 'zero-shot', 'maple', *part[5:-1], str(tmp_path/'new')]
    assert main([*words, *ALONE]) == 2
    said = capsys.readouterr()
    assert said.err == ('dra-nb: maple on glyph-clip: depth: got 9, allowed 1 to 8, the blocks of '
                        'the towers\n')
    assert said.out == '' and not (tmp_path/'new').exists()
    at = words.index('--seeds')
    others = words[words.index('--root'):]
    bench = ['bench', '--methods', 'zero-shot', 'maple', '--datasets', 'dtd', 'oxford_pets']
    assert main([*bench, '--shots', '2', *words[at:at+2], *others, *ALONE]) == 2
    assert 'maple on glyph-clip: depth: got 9, allowed 1 to 8' in capsys.readouterr().err


def test_a_line_names_the_row(capsys):
    facts = dict(method='dra-recommended', dataset='food', seed=1)
    record = Record(facts, dict(base=60.), {}, {}, dict(train=1., test=1.), {}, 'cpu')
    RunLines().show(record, 1, 2, row='r = 4')
    RunLines().show(record, 2, 2, row='dra-recommended')
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('[1/2] food dra-recommended (r = 4) seed 1: base 60.0')
    assert second.startswith('[2/2] food dra-recommended seed 1: ')


def test_few_images_are_one_line(part, capsys, tmp_path):
    "Whatever the number of data sets; the same of photographs."
    for name in 'ab':
        for k in range(4):
            save_images(tmp_path/name/f'class {k}', 4, 10*k, (20, 20))
    at = part.index('--pretrained')
    words = ['bench', '--methods', 'zero-shot', '--datasets', str(tmp_path/'a'), str(tmp_path/'b'),
             '--seeds', '1', *part[at:-1], str(tmp_path/'results'), *ALONE]
    assert main(words) == 0
    few, photographs = capsys.readouterr().err.splitlines()
    assert 'fewer than 16 shots are drawn' in few and ': a 2, b 2 (' in few
    assert photographs.startswith('dra-nb: glyph-clip was trained on drawings')


def test_svg_has_a_title(capsys, tmp_path):
    plan = plan_table('fig3', datasets=['food'], seeds=[1], device='cpu')
    for run in plan.runs:
        write_record(tmp_path, Record(run.facts(), dict(base=60., new=50., hm=54.5), {}, {}, {}, {},
                                      'cpu'))
    file = tmp_path/'x.svg'
    say(capsys, 'paper', 'fig3', '--done', '--datasets', 'food', '--seeds', '1', '--device', 'cpu',
        '--out', str(tmp_path), '--save', str(file))
    start = file.read_text()[:2000]
    assert '<title>fig3: Width r and first block h</title><desc>glyph-clip; data sets food' in start


ROWS = ', '.join(line.label for line in find_table('table1').lines_for('glyph-clip'))
SETS = f'{", ".join((*glyphs.SETS, *glyphs.SHIFTS))}; with a root {", ".join(REAL)}'


@pytest.mark.parametrize('words, why', [
    (['table7'], f"table: got 'table7', allowed are {', '.join(TABLES)}"),
    (['table1', '--methods', 'magic'], f"methods: got 'magic', allowed for table1 are {ROWS}"),
    (['table1', '--seeds', '1-3'],
     "seeds: got '1-3', allowed whole numbers with spaces between, such as 1 2 3"),
    (['table1', '--seeds', '-1'], f'seeds: got -1, allowed whole numbers from 0 to {2**63-1}'),
    (['table1', '--root', ''], "root: got '', allowed is a word that is not empty"),
    (['table1', '--datasets', 'atlantis'], "dataset: unknown data set 'atlantis' (did you mean "
     f"'plants'?); allowed: {SETS}; or your own folder of class folders or CSV file"),
    (['table1', '--format', 'word'],
     "format: got 'word', allowed 'markdown', 'latex', 'text', 'csv'"),
    (['table1', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'openai'],
     "root: not given; ViT-B-16-quickgelu is run on the paper's data sets, which are in a folder "
     '(--root DATA); --plan and --done need none'),
    (['table1', '--plan', '--datasets', 'food', '--tflops', '0'],
     'tflops: got 0.0, allowed finite numbers above 0'),
    (['table1', '--tflops', '5'], 'tflops: got 5 without --plan, which alone uses it'),
    (['table4', '--methods', 'x'], "methods: got 'x', allowed for table4 are 'text only', "
     "'image only', neither, 'channel ranking', regularizer, both, baseline, 'likely, text only', "
     "'likely, image only', 'likely, neither', 'likely, channel ranking', 'likely, regularizer', "
     "'likely, both', 'likely, baseline'"),
    (['table1', '--plan', '--model', 'ViT-B-16-quickgelu'], 'pretrained: not given, and '
     'ViT-B-16-quickgelu has random weights without; give one of open_clip\'s tags, such as '
     'openai, or a weights file'),
    (['table1', '--plan', '--workers', '2'],
     'workers: got 2 with --plan, which makes no runs'),
    (['table1', '--done', '--ray', 'here'], 'ray: got here with --done, which makes no runs'),
    (['table1', '--done', '--out', 'nowhere'], "out: got 'nowhere', which is not there; allowed "
     'with --done is a folder of results'),
    (['fig3', '--save', 'x.png'],
     "save: got 'x.png', allowed for a figure is a name that ends in .svg"),
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
    (tmp_path/'glyph-clip').mkdir()
    text = say(capsys, 'paper', 'table1', '--done', '--methods', 'coop', '--datasets', 'food',
               '--seeds', '1', '--out', 'glyph-clip')
    assert 'dra-nb paper table1 --methods coop --datasets food --seeds 1 --out glyph-clip' in text


def test_gains_in_table1_of_what_is_there(tmp_path):
    "A row whose other method lacks is left out, and so are sets that only one of them has."
    def add(method, dataset, new):
        run, = plan_table('table1', [method], [dataset], [1], device='cpu').runs
        metrics = dict(base=50., new=new, hm=50.)
        write_record(tmp_path, Record(run.facts(), metrics, {}, {}, {}, {}, 'cpu'))

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


def test_weights_of_a_plan_that_are_none(capsys):
    words = ['paper', 'table1', '--plan', '--model', 'ViT-B-16-quickgelu', '--pretrained', 'none']
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("dra-nb: pretrained: got 'none', which is neither a file nor a tag ")
    assert said.err.count('\n') == 1 and said.out == ''


def test_other_settings_are_no_row_of_table1(tmp_path):
    "A folder may have runs of Table 4 beside those of Table 1."
    plan = plan_table('table4', ['regularizer', 'both'], ['food'], [1], device='cpu')
    for label, run in plan.pairs:
        metrics = dict(base=60., new=50. if label == 'both' else 90., hm=0.)
        write_record(tmp_path, Record(run.facts(), metrics, {}, {}, {}, {}, 'cpu'))
    _, runs = read_table('table1', tmp_path)
    assert [run.metrics['new'] for run in runs] == [50.]


def test_an_empty_root(part, capsys, tmp_path):
    words = [*part[:part.index('--root')], '--root', str(tmp_path), '--out', str(tmp_path/'out')]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'oxford_pets' in said
    assert not (tmp_path/'out').exists()
