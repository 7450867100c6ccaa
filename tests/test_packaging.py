"What an installed package must have: requirements it names, data it carries, a console script, no development tools."
import ast, configparser, importlib, json, os, re, subprocess, sys, zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(o for o in (ROOT/'dra_nb').rglob('*.py'))
DEV = {'nbdev', 'execnb', 'fastcore', 'ghapi', 'IPython', 'jupyterlab', 'pytest', 'smalldocs', 'selenium', 'setuptools', 'ipywidgets'}
# Docs are built and pages explored in a checkout, with development requirements that are asked for when they are needed.
LAZY = {'docs.py': {'nbdev', 'smalldocs'}, 'visualization.py': {'ipywidgets'}}

@pytest.fixture(scope='module')
def settings():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def lines(text): return [o for o in text.splitlines() if o.strip()]
def name(requirement): return re.match(r'[\w.-]+', requirement)[0].lower().replace('_', '-')

def imports(path):
    "Top-level packages a module imports, as (name, at module level)."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    top = {id(o) for o in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from ((o.name.split('.')[0], id(node) in top) for o in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0], id(node) in top


@pytest.mark.parametrize('path', MODULES, ids=lambda o: o.relative_to(ROOT).as_posix())
def test_no_development_tool_is_imported(path):
    found = {o for o, top in imports(path) if o in DEV and (top or o not in LAZY.get(path.name, ()))}
    assert found == set()

@pytest.mark.parametrize('path', MODULES, ids=lambda o: o.relative_to(ROOT).as_posix())
def test_imports_are_required(path, settings):
    "Every package imported at module level is the standard library's, ours, or in the requirements."
    here = {name(o).replace('-', '_') for o in lines(settings['requirements'])} | {'open_clip', 'PIL', 'dra_nb'}
    missing = {o for o, top in imports(path) if top and o not in sys.stdlib_module_names | here}
    assert missing == set()

@pytest.mark.parametrize('path', [o for o in MODULES if o.name not in ('_modidx.py', '__init__.py')], ids=lambda o: o.relative_to(ROOT).as_posix())
def test_modules_import(path):
    importlib.import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts))


def test_version_is_said_once(settings):
    import dra_nb
    assert dra_nb.__version__ == settings['version'] == metadata.version('dra_nb')

def test_requirements_have_ranges(settings):
    "A lower bound for each, one line each, nothing twice."
    for key in ('requirements', 'dev_requirements'):
        names = [name(o) for o in lines(settings[key])]
        assert len(names) == len(set(names))
        assert all(re.search(r'[<>=]', o) for o in lines(settings[key]))

def test_flags_split_on_blanks(settings): assert settings['tst_flags'].split() == ['notest', 'slow', 'gpu', 'net']

def test_one_quarto_file():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and link.resolve() == ROOT/'_quarto.yml'

def test_every_module_has_its_notebook():
    "The first lines of a generated module name its notebook; nothing is left over from a notebook that went away."
    for path in MODULES:
        if path.name in ('__init__.py', '_modidx.py'): continue
        source = re.search(r'File to edit: (\S+?\.ipynb)', path.read_text(encoding='utf-8'))
        assert source, f'{path.name} was not made from a notebook'
        assert (path.parent/source[1]).exists(), f'{path.name}: no {source[1]}'

def test_notebooks_export_themselves():
    "Each module has one notebook."
    seen = {}
    for path in sorted((ROOT/'nbs').glob('[!_.]*.ipynb')):
        code = [''.join(o['source']) for o in json.loads(path.read_text(encoding='utf-8'))['cells'] if o['cell_type'] == 'code']
        for module in re.findall(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(code), flags=re.M):
            assert module not in seen, f'{path.name} and {seen[module]} both write {module}'
            seen[module] = path.name

def test_readme_is_current():
    from dra_nb.docs import write_readme
    assert write_readme(ROOT, check=True), 'README.md differs from nbs/index.ipynb: python3 scripts/run.py sync'

def test_readme_links_exist():
    text = re.sub(r'```.*?```', '', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    links = [o.split('#')[0] for o in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:|#', o)]
    assert links and [o for o in links if not (ROOT/o).exists()] == []


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built as pip builds it; without isolation, so without the network."
    folder = tmp_path_factory.mktemp('wheel')
    source = tmp_path_factory.mktemp('source')
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    for o in filter(None, tracked): # a copy: building leaves folders behind
        if o.startswith(('nbs/', 'tests/')) or not (ROOT/o).is_file(): continue
        (source/o).parent.mkdir(parents=True, exist_ok=True)
        (source/o).write_bytes((ROOT/o).read_bytes())
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob('*.whl')))

def test_wheel_carries_modules_and_data(wheel):
    inside = set(wheel.namelist())
    tracked = subprocess.run(['git', 'ls-files', 'dra_nb'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {o for o in tracked if not Path(o).name.startswith('.')}
    assert expected <= inside
    assert not [o for o in inside if o.startswith(('nbs/', 'tests/', 'scripts/'))]

def test_wheel_is_small(wheel):
    "Drawings at most 20 MB, weights at most 25 MB, and little beside them."
    assert sum(o.compress_size for o in wheel.infolist()) < 46e6

def test_wheel_names_requirements_and_script(wheel, settings):
    info = next(o for o in wheel.namelist() if o.endswith('METADATA')).rsplit('/', 1)[0]
    meta = wheel.read(f'{info}/METADATA').decode()
    required = {name(o) for o in re.findall(r'^Requires-Dist: (.*)$', meta, flags=re.M) if 'extra ==' not in o}
    assert required == {name(o) for o in lines(settings['requirements'])}
    assert 'License-Expression: Apache-2.0' in meta or 'License: Apache-2.0' in meta
    assert 'dra-nb = dra_nb.cli:main' in wheel.read(f'{info}/entry_points.txt').decode()

def test_console_script(settings):
    script = Path(sys.executable).parent/'dra-nb'
    say = lambda o: subprocess.run([script, o], capture_output=True, text=True, timeout=120)
    assert say('--version').stdout.split()[-1] == settings['version']
    help = say('--help').stdout
    assert all(o in help for o in ('demo', 'fit', 'evaluate', 'predict', 'bench', 'pretrain', 'data', 'docs'))


def run(*args, **env): return subprocess.run([sys.executable, ROOT/'scripts/run.py', *args], capture_output=True, text=True, timeout=60, env={**os.environ, **env})

def test_run_explains_itself():
    assert run('--help').returncode == 0 and run().returncode == run('dance').returncode == 2
    assert 'python3 scripts/run.py test' in run('--help').stdout
    bad = run('--fast', 'test')
    assert bad.returncode == 1 and bad.stderr.strip() == "run.py: unknown option '--fast'; see --help"

def test_run_says_more_than_pip(tmp_path):
    "pip's exit code, and a last line about the disk."
    out = run('--venv', str(tmp_path/'venv'), 'demo', PIP_NO_INDEX='1', PIP_FIND_LINKS='')
    assert out.returncode == 1 and re.fullmatch(r'run.py: the installation failed; \d+ GB are free here, .* see --cpu', out.stderr.strip().splitlines()[-1])

def test_ci_runs_what_readme_says():
    "Two commands for a newcomer; CI ends with the second."
    commands = re.findall(r'```bash\n(.*?)\n```', (ROOT/'README.md').read_text(encoding='utf-8'), flags=re.S)
    assert commands[:2] == ['python3 scripts/run.py demo', 'python3 scripts/run.py test']
    assert (ROOT/'.ci/run').read_text().rstrip().endswith(commands[1])
