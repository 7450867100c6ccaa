"""Commands that pages tell people to type: all are understood, and runs of the benchmark can be made."""
import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from dra_nb.bench import runs
from dra_nb.cli import build_parser, main
from dra_nb.data.glyphs import SETS

NBS = Path(__file__).parents[1]/'nbs'
OWN = re.compile(r'\b(PICTURES|PHOTOS|DATA|SET|FOLDER|FILE)\b')      # what a reader puts a name for


def commands_of(page):
    "The words of every line in a page's text that calls the program."
    found = []
    for cell in json.loads(page.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'markdown':
            continue
        text = ''.join(cell['source'])
        lines = re.findall(r'`(dra-nb (?:bench|fit) --?[^`]*)`', text)      # in a sentence
        for block in re.findall(r'```(?:bash|sh)\n(.*?)```', text, re.S):
            lines += block.replace('\\\n', ' ').splitlines()
        for line in lines:
            if line.startswith('dra-nb ') and '…' not in line:
                found.append(shlex.split(line, comments=True)[1:])
    return found


COMMANDS = [(page.stem, words) for page in sorted(NBS.glob('*.ipynb')) for words in commands_of(page)]


class Planned(BaseException):
    "In place of runs."


@pytest.fixture
def planning(monkeypatch, tmp_path):
    "Runs are planned and not made."
    def plan(made, *args, **kwargs):
        raise Planned(len(made))
    monkeypatch.setattr(runs, 'run_missing', plan)
    monkeypatch.chdir(tmp_path)


def test_pages_have_commands():
    assert len(COMMANDS) > 35 and len({page for page, _ in COMMANDS}) > 15


@pytest.mark.parametrize('page, words', COMMANDS, ids=lambda o: o if isinstance(o, str) else o[0])
def test_command_is_understood(page, words, planning, capsys):
    "Options exist; a benchmark's names and settings are known, and so are those of a fit."
    args = build_parser().parse_args(words)
    if OWN.search(' '.join(words)):
        return
    if args.command == 'bench':
        with pytest.raises(Planned):
            code = main(words)
            pytest.fail(f'exit code {code}: {capsys.readouterr().err}')
    elif args.command == 'fit' and args.dataset in SETS and not args.show:
        code = main([*words, '--show'])
        assert code == 0, capsys.readouterr().err


def shows_something(source):
    "Does a cell end by printing, or by text or a table?"
    lines = [line for line in source.splitlines() if line.startswith(('print(', 'Markdown('))]
    hidden = '#| export' in source or '#| hide' in source
    return bool(lines) and not hidden and '"""import' not in source     # a program in a string


def test_stored_outputs_are_there():
    "The site shows what is stored: a result that was lost is a hole in the page."
    lost = []
    for page in sorted(NBS.glob('*.ipynb')):
        for cell in json.loads(page.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] == 'code' and not cell['outputs']:
                if shows_something(''.join(cell['source'])):
                    lost.append(f'{page.stem} {cell["id"]}')
    assert not lost


def template_of(source):
    "A pattern of what a cell shows if it ends with `Markdown(f'…')`; '' for other cells."
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return ''
    call = getattr(last, 'value', None)
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == 'Markdown' and call.args):
        return ''
    text = call.args[0]
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    pattern = ''
    for part in parts:
        literal = isinstance(part, ast.Constant) and isinstance(part.value, str)
        pattern += re.escape(part.value) if literal else '.*'
    return pattern


def shown_text(cell):
    "What a cell shows as Markdown, as it is stored."
    return ''.join(''.join(output.get('data', {}).get('text/markdown', []))
                   for output in cell['outputs'])


def older_than_code(cells):
    "The cells whose stored text cannot be what their code makes."
    return [cell['id'] for cell in cells if cell['cell_type'] == 'code' and cell['outputs']
            and not re.fullmatch(template_of(''.join(cell['source'])) or '.*', shown_text(cell),
                                 re.DOTALL)]


def test_stored_text_is_of_its_code():
    "The words between the numbers are those of the code: else the page was not run again."
    old = {}
    for page in sorted(NBS.glob('*.ipynb')):
        found = older_than_code(json.loads(page.read_text(encoding='utf-8'))['cells'])
        if found:
            old[page.stem] = found
    assert not old


def test_older_text_is_found():
    source = "n = 3\nMarkdown(f'''**{n} of them hold** here, {n} elsewhere.''')"
    cell = dict(cell_type='code', id='a', source=source,
                outputs=[dict(data={'text/markdown': ['**3 of them hold** here, 3 elsewhere.']})])
    assert older_than_code([cell]) == []
    assert older_than_code([cell | {'source': source.replace('hold', 'fail')}]) == ['a']
    assert older_than_code([cell | {'source': 'print(3)'}]) == []
