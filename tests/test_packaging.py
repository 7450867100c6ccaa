"What an installed package must have: requirements it names, data it carries, a console script."
import ast
import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from test_site import builder

ROOT = Path(__file__).parent.parent
MODULES = sorted(o for o in (ROOT/'dra_nb').rglob('*.py') if o.name != '_modidx.py')
DEV = {'nbdev', 'execnb', 'fastcore', 'ghapi', 'IPython', 'jupyterlab', 'pytest', 'smalldocs',
       'selenium', 'setuptools', 'ipywidgets'}
# Libraries that we require need these in turn.
NEEDED = {'fastcore', 'setuptools'}
# The explorer of token ranks asks for its controls when it is opened, in a checkout.
LAZY = {'visualization.py': {'ipywidgets'}}
SPELLED = {'open_clip_torch': 'open_clip', 'pillow': 'PIL'}


@pytest.fixture(scope='module')
def settings():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def name(requirement):
    return re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')


def imports(path):
    "Top-level packages a module imports, each with whether it does so at module level."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split('.')[0], node in tree.body
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split('.')[0], node in tree.body


def git(*words):
    done = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_imports_are_required(settings):
    "Development tools stay outside; what is imported at module level is required."
    names = [name(line).replace('-', '_') for line in lines(settings['requirements'])]
    known = {'dra_nb', *sys.stdlib_module_names, *(SPELLED.get(o, o) for o in names)}
    wrong = []
    for path in MODULES:
        for package, at_top in imports(path):
            tool = package in DEV and (at_top or package not in LAZY.get(path.name, ()))
            if tool or at_top and package not in known:
                wrong.append((path.name, package))
    assert wrong == []


def test_modules_import_without_development_tools():
    "All of them in one process, in which the tools cannot be imported."
    names = ['.'.join(o.relative_to(ROOT).with_suffix('').parts) for o in MODULES]
    names = [o.removesuffix('.__init__') for o in names]
    code = f'''
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(DEV - NEEDED)}))
for name in {names}:
    importlib.import_module(name)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_said_once(settings):
    import dra_nb
    assert dra_nb.__version__ == settings['version'] == metadata.version('dra_nb')


def test_package_says_what_it_is(settings):
    import dra_nb
    assert 'CLIP' in dra_nb.__doc__
    words = [sys.executable, '-m', 'dra_nb', '--version']
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == f'dra-nb {settings["version"]}\n', done.stderr


def test_requirements_have_ranges(settings):
    "A lower bound for each, one line each, nothing twice."
    for key in ('requirements', 'dev_requirements'):
        names = [name(line) for line in lines(settings[key])]
        assert len(names) == len(set(names))
        assert all(re.search(r'[<>=]', line) for line in lines(settings[key]))


def test_one_quarto_file():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and link.resolve() == ROOT/'_quarto.yml'


def test_every_module_has_its_notebook():
    "One notebook a module, and nothing left over from a notebook that went away."
    for path in MODULES:
        if path.name in ('__init__.py', '__main__.py'):                # written by hand
            continue
        source = re.search(r'File to edit: (\S+?\.ipynb)', path.read_text(encoding='utf-8'))
        assert source, f'{path.name} was not made from a notebook'
        assert (path.parent/source[1]).exists(), f'{path.name}: no {source[1]}'
    homes = {}
    for path in sorted((ROOT/'nbs').glob('[!_.]*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            home = re.match(r'#\|\s*default_exp\s+(\S+)', ''.join(cell['source']))
            if home:
                assert home[1] not in homes, f'{path.name} and {homes[home[1]]} write {home[1]}'
                homes[home[1]] = path.name


def test_readme_is_current():
    current = (ROOT/'README.md').read_text(encoding='utf-8') == builder().readme()
    assert current, 'README.md differs from nbs/index.ipynb: python3 scripts/run.py sync'


def test_readme_links_exist():
    text = re.sub(r'```.*?```', '', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    links = [o.split('#')[0] for o in re.findall(r'\]\(([^)\s]+)\)', text)]
    local = [o for o in links if o and not re.match('[a-z]+:', o)]
    assert local and [o for o in local if not (ROOT/o).exists()] == []


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built as pip builds it; without isolation, so without the network."
    folder = tmp_path_factory.mktemp('wheel')
    source = tmp_path_factory.mktemp('source')      # a copy: building leaves folders behind
    for tracked in filter(None, git('ls-files', '-z').split('\0')):
        if not tracked.startswith(('nbs/', 'tests/')) and (ROOT/tracked).is_file():
            (source/tracked).parent.mkdir(parents=True, exist_ok=True)
            (source/tracked).write_bytes((ROOT/tracked).read_bytes())
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    done = subprocess.run([*pip, '--wheel-dir', folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob('*.whl')))


def test_wheel_carries_modules_and_data(wheel):
    inside = set(wheel.namelist())
    tracked = git('ls-files', 'dra_nb').split()
    assert {o for o in tracked if not Path(o).name.startswith('.')} <= inside
    assert not [o for o in inside if o.startswith(('nbs/', 'tests/', 'scripts/'))]


def test_wheel_is_small(wheel):
    "Drawings at most 20 MB, weights at most 25 MB, and little beside them."
    assert sum(o.compress_size for o in wheel.infolist()) < 46e6


def test_wheel_names_requirements_and_script(wheel, settings):
    info = next(o for o in wheel.namelist() if o.endswith('METADATA')).rsplit('/', 1)[0]
    meta = wheel.read(f'{info}/METADATA').decode()
    named = re.findall(r'^Requires-Dist: (.*)$', meta, flags=re.M)
    required = {name(o) for o in named if 'extra ==' not in o}
    assert required == {name(o) for o in lines(settings['requirements'])}
    assert re.search('^License(-Expression)?: Apache-2.0', meta, flags=re.M)
    scripts = wheel.read(f'{info}/entry_points.txt').decode()
    assert 'dra-nb = dra_nb.cli:main' in scripts


def test_console_script(settings):
    script = Path(sys.executable).parent/'dra-nb'

    def said(option):
        words = [script, option]
        return subprocess.run(words, capture_output=True, text=True, timeout=120).stdout

    assert said('--version').split()[-1] == settings['version']
    usage = said('--help')
    for job in ('demo', 'fit', 'evaluate', 'predict', 'bench', 'pretrain', 'data'):
        assert job in usage


def run(*words, **env):
    command = [sys.executable, ROOT/'scripts/run.py', *words]
    env = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_run_explains_itself():
    usage = run('--help')
    assert usage.returncode == 0 and 'python3 scripts/run.py test' in usage.stdout
    assert run().returncode == 2


@pytest.mark.parametrize('words, message', [
    ('dance', "unknown job 'dance'; allowed: demo, test, lab, docs, sync, check"),
    ('--fast test', "unknown option '--fast'; allowed: --cpu, --venv FOLDER, --no-install"),
    ('check this', 'check: got this, allowed nothing after it')])
def test_run_names_what_is_allowed(words, message):
    done = run(*words.split())
    assert done.returncode == 2 and done.stderr == f'run.py: {message}\n'


def test_run_says_more_than_pip(tmp_path):
    "pip's exit code, and a last line about the disk."
    done = run('--venv', str(tmp_path/'venv'), 'demo', PIP_NO_INDEX='1', PIP_FIND_LINKS='')
    last = done.stderr.strip().splitlines()[-1]
    expected = r'run.py: the installation failed; \d+ GB are free here, .* see --cpu'
    assert done.returncode == 1 and re.fullmatch(expected, last)


@pytest.mark.skipif(os.name == 'nt', reason='a shell script stands in for Jupyter')
@pytest.mark.parametrize('words, page, rest', [
    ('', '00_notation', ''), ('07', '07_dra', ''), ('scoring --port 1', '03_scoring', '--port 1'),
    ('--port 1', '00_notation', '--port 1')])
def test_lab_opens_a_page(tmp_path, words, page, rest):
    "Also as root, whom JupyterLab serves only if it is told to."
    folder = tmp_path/'bin'
    folder.mkdir()
    for program, line in dict(python=f'exec "{sys.executable}" "$@"', jupyter='echo "$@"').items():
        (folder/program).write_text(f'#!/bin/sh\n{line}\n')
        (folder/program).chmod(0o755)
    done = run('--no-install', '--venv', str(tmp_path), 'lab', *words.split())
    root = '--allow-root' if os.geteuid() == 0 else ''
    expected = ['lab', f'{ROOT}/nbs/{page}.ipynb', *rest.split(), *root.split()]
    assert done.stdout.splitlines()[-1].split() == expected


def test_ci_runs_what_readme_says():
    "Two commands for a newcomer; CI ends with the second."
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    block = re.search(r'```bash\n(.*?)\n```', readme, flags=re.S)
    commands = block[1].splitlines()
    assert commands == ['python3 scripts/run.py demo', 'python3 scripts/run.py test']
    last = (ROOT/'.ci/run').read_text().splitlines()[-1]
    assert last.replace(' "$@"', '') == commands[1]
    assert '.ci/run' in (ROOT/'.github/workflows/test.yml').read_text()
