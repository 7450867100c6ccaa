"The package's modules know only those below them, keep their private names, and read line by line."
import ast
import json
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent/'dra_nb'
NOTEBOOKS = PACKAGE.parent/'nbs'

# From the bottom up. A module imports from lines above its own, and from its own line as long as
# nothing goes round in a circle. `data`, `methods` and `bench` are the folders' own __init__.py.
ROOMS = [
    'files checks seeds figures',
    'clip',
    'prompts',
    'weights',
    'attach',
    'adapter scoring sorting channels masking regularizer',
    'dra',
    'data.glyphs data.items data.images data.folders data.public data.check data.download '
    'data.load',
    'data',
    'recipes',
    'methods.base methods.zero_shot methods.adapter methods.dra methods.coop '
    'methods.maple methods.mma methods.kgcoop methods.cocoop methods.tcp '
    'methods.lfa methods.metaprompt methods.proda '
    'methods.promptsrc methods.clip_lora methods.clip_adapter '
    'methods.tip_adapter methods.control methods.dra_plus',
    'methods',
    'training',
    'contract evaluation',
    'bench.protocols bench.runs bench.results bench.statistics bench.tables bench.choice '
    'bench.speed',
    'bench',
    'visualization claims pretraining',
    'bench.plan bench.paper bench.importance bench.search bench.ablations '
    'bench.training_effects',
    'drawings',
    'commands commands.arguments',
    'commands.adapt commands.bench commands.data',
    'commands.paper',
    'cli',
    '__main__',
]
FLOOR = {module: floor for floor, room in enumerate(ROOMS) for module in room.split()}

# `clip.load_clip` is a public name; what it does lies in `weights`, and is imported when called.
ALLOWED = {('clip', 'weights')}

COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def module_of(path, package):
    "'methods.dra' of dra_nb/methods/dra.py; 'methods' of its __init__.py; '' of the package's own."
    parts = list(path.relative_to(package).with_suffix('').parts)
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def read_package(package):
    "Module → its text."
    files = sorted(package.rglob('*.py'))
    return {module_of(path, package): path.read_text(encoding='utf-8') for path in files
            if path.name != '_modidx.py'}


def folders(modules):
    "Modules that are an __init__.py with modules beside it."
    return {module.rpartition('.')[0] for module in modules} | {''}


def absolute(node, module, packages):
    "What an `import from` names, seen from the package; None where it is not ours."
    if not node.level:
        first, _, rest = node.module.partition('.')
        return rest if first == 'dra_nb' else None
    parts = module.split('.') if module else []
    up = node.level - (module in packages)
    base = parts[:len(parts) - up] if up else parts
    return '.'.join([*base, *(node.module or '').split('.')]).strip('.')


def imports(code, module, modules):
    "(imported module, imported name or None, name here) for all imports, those in functions too."
    packages = folders(modules)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition('.')
                if first == 'dra_nb':
                    yield rest, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            home = absolute(node, module, packages)
            for alias in node.names if home is not None else ():
                inside = f'{home}.{alias.name}'.strip('.')
                if inside in modules:       # `from dra_nb import clip`
                    yield inside, None, alias.asname or alias.name
                else:
                    yield home, alias.name, alias.asname or alias.name


def graph(texts):
    "Module → modules it imports."
    found = {}
    for module, code in texts.items():
        targets = {target for target, *_ in imports(code, module, texts)}
        found[module] = {o for o in targets if o and o != module and (module, o) not in ALLOWED}
    return found


def circle(edges):
    "The modules of a circle, in order; nothing where there is none."
    done = set()

    def visit(module, path):
        if module in path:
            return [*path[path.index(module):], module]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            found = visit(target, [*path, module])
            if found:
                return found
        done.add(module)
        return []

    for module in sorted(edges):
        found = visit(module, [])
        if found:
            return found
    return []


def private_uses(texts):
    "Lines 'module: name' where a name with an underscore comes from another module."
    found = []
    for module, code in texts.items():
        aliases = {}
        for target, name, here in imports(code, module, texts):
            private = name and name.startswith('_') and not name.endswith('__')
            if private and target != module:
                found.append(f'{module}: {target}.{name}')
            if name is None:
                aliases[here] = target
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and node.attr.startswith('_'):
                owner = ast.unparse(node.value)
                if owner in aliases and not node.attr.endswith('__'):
                    found.append(f'{module}: {aliases[owner]}.{node.attr}')
    return found


def long_lines(code):
    "Lines of more than 100 characters, below what nbdev writes above the first cell."
    lines = code.splitlines()
    cells = [i for i, line in enumerate(lines) if line.startswith('# %% ../')]
    start = cells[0] if cells else 0
    return [i for i, line in enumerate(lines, 1) if len(line) > 100 and i > start]


def long_cell_lines(notebook):
    "(cell, length) of lines of more than 100 characters in code cells; lines of `#|` may be longer."
    found = []
    for i, cell in enumerate(notebook['cells']):
        if cell['cell_type'] != 'code':
            continue
        for line in ''.join(cell['source']).splitlines():
            if len(line) > 100 and not line.startswith('#|'):
                found.append((i, len(line)))
    return found


def crowded_lines(code):
    "Lines on which a statement begins after another one: `if x: y`, `a; b`, `def f(): return 1`."
    lines = code.encode().splitlines()
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    return sorted({node.lineno for node in nodes if lines[node.lineno-1][:node.col_offset].strip()})


def nested_comprehensions(code):
    "Line of every comprehension that holds another one."
    found = []
    for node in ast.walk(ast.parse(code)):
        inside = [o for o in ast.walk(node) if o is not node and isinstance(o, COMPREHENSIONS)]
        if isinstance(node, COMPREHENSIONS) and inside:
            found.append(node.lineno)
    return sorted(found)


def places(texts, count):
    "'module:line' of whatever `count` finds."
    return [f'{module or "__init__"}:{i}' for module, code in texts.items() for i in count(code)]


@pytest.fixture(scope='module')
def texts():
    return read_package(PACKAGE)


def test_every_module_has_a_room(texts):
    assert sorted(set(texts) - set(FLOOR) - {''}) == []


def test_imports_go_down(texts):
    upwards = []
    for module, targets in graph(texts).items():
        for target in sorted(targets):
            if FLOOR.get(target, 0) > FLOOR.get(module, 0):
                upwards.append(f'{module} imports {target}')
    assert upwards == []


def test_no_circle(texts):
    assert circle(graph(texts)) == []


def test_private_names_stay_at_home(texts):
    assert private_uses(texts) == []


def test_lines_are_short(texts):
    assert places(texts, long_lines) == []


def test_cell_lines_are_short():
    pages = sorted(path for path in NOTEBOOKS.rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in path.parts)
    assert pages
    found = []
    for page in pages:
        notebook = json.loads(page.read_text(encoding='utf-8'))
        for cell, length in long_cell_lines(notebook):
            found.append(f'{page.name} cell {cell}: {length} characters')
    assert not found, '\n'.join(found)


def test_one_statement_a_line(texts):
    assert places(texts, crowded_lines) == []


def test_no_nested_comprehensions(texts):
    assert places(texts, nested_comprehensions) == []


def test_the_counting_itself():
    "What the tests above would see, on a package of three lines each."
    a = 'from .b import _x\nif a: b\n'
    b = 'def f():\n    from .sub.c import y\n'
    c = 'from ..a import z\nimport dra_nb.b as b\nq = [[i for i in j] for j in b._k]; w = 1\n'
    texts = {'a': a, 'b': b, 'sub.c': c, 'sub': ''}
    assert graph(texts) == {'a': {'b'}, 'b': {'sub.c'}, 'sub.c': {'a', 'b'}, 'sub': set()}
    assert circle(graph(texts)) == ['a', 'b', 'sub.c', 'a']
    assert private_uses(texts) == ['a: b._x', 'sub.c: b._k']
    assert places(texts, crowded_lines) == ['a:2', 'sub.c:3']
    assert places(texts, nested_comprehensions) == ['sub.c:3']
    assert long_lines('x'*101) == [1] and long_lines('x'*100) == []
    assert long_lines('x'*101 + '\n# %% ../nbs/a.ipynb\n' + 'x'*101) == [3]
    code = dict(cell_type='code', source=['#| '+'x'*101+'\n', 'x'*100+'\n', 'x'*101])
    prose = dict(cell_type='markdown', source=['x'*101])
    assert long_cell_lines(dict(cells=[prose, code])) == [(1, 101)]
