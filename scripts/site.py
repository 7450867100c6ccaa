"""The docs site and README.md, made from the notebooks in Python alone and readable offline.

    python scripts/site.py build [FOLDER]     the site, into _docs/ if no folder is named
    python scripts/site.py readme             README.md from nbs/index.ipynb

nbdev prepares the notebooks in _proc/, and smalldocs renders them by _quarto.yml, as Quarto would.
Done here is what neither does: exported code is shown, pages are named without their numbers, KaTeX
comes from the site itself, each of the paper's equations has an anchor, no link leads nowhere,
pictures, buttons and tables say what they are, and every page leads to its notebook.
"""
import ast
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from html import escape, unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read(path):
    return path.read_text(encoding='utf-8')


def write(path, text):
    path.write_text(text, encoding='utf-8')


def joined(text):
    "A notebook keeps text as one string or as a list of lines."
    return ''.join(text)


# README.md

NOTE = '<!-- Made from nbs/index.ipynb by `python3 scripts/run.py sync`; edit the notebook. -->'
HIDDEN = {'hide', 'export', 'exporti', 'default_exp'}
FENCED = re.compile(r'(```.*?```|`[^`\n]*`)', re.S)
RELATIVE = re.compile(r'(\]\()(?![a-z][a-z+.-]*:|[#/<])([^)\s]+)')
WIDGET = 'application/vnd.jupyter.widget-view+json'


def directives(source):
    "The leading `#|` lines of a code cell as name → value, and the code without them."
    lines = source.splitlines()
    found = {}
    while lines and lines[0].startswith('#|'):
        name, _, value = lines.pop(0)[2:].strip().partition(' ')
        found[name.rstrip(':')] = value.strip()
    return found, '\n'.join(lines).strip('\n')


def relink(text):
    "Make the links of a page in nbs/ valid one folder above it; what is code stays."
    def one_up(match):
        target = match[2]
        return match[1] + (target[3:] if target.startswith('../') else f'nbs/{target}')

    parts = FENCED.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = RELATIVE.sub(one_up, parts[i])
    return ''.join(parts)


def in_one(outputs):
    "What a cell prints in several goes is one output."
    found = []
    for output in outputs:
        name = output.get('name')
        if name and found and found[-1].get('name') == name:
            text = joined(found[-1]['text']) + joined(output['text'])
            found[-1] = found[-1] | {'text': text}
        else:
            found.append(output)
    return found


def unquoted(output):
    "A string that ends a cell is shown as its words."
    data = output.get('data', {})
    text = joined(data.get('text/plain', ''))
    if set(data) != {'text/plain'} or text[:1] not in ("'", '"'):
        return output
    return output | {'data': {'text/plain': ast.literal_eval(text)}}


def shown_outputs(cell):
    "Outputs of a code cell for a page: no widgets; text printed under `output: asis` is Markdown."
    outputs = [o for o in cell['outputs'] if WIDGET not in o.get('data', {})]
    outputs = [unquoted(output) for output in in_one(outputs)]
    if directives(joined(cell['source']))[0].get('output') != 'asis':
        return outputs
    printed = ''.join(joined(o['text']) for o in outputs if o.get('name') == 'stdout')
    data = {'text/markdown': printed}
    markdown = dict(output_type='display_data', metadata={}, data=data)
    return [markdown, *(o for o in outputs if o.get('name') != 'stdout')]


def output_markdown(output):
    "One stored output in Markdown, empty where there is nothing to show."
    data = output.get('data', {})
    if any(kind.startswith('image/') for kind in data):
        raise ValueError('index.ipynb: got a picture as output, allowed text; save it in figures/')
    if 'text/markdown' in data:
        return joined(data['text/markdown']).strip()
    text = joined(output.get('text') or data.get('text/plain') or '').rstrip()
    return f'```text\n{text}\n```' if text else ''


def readme(root=ROOT):
    "README.md: the index notebook as GitHub's Markdown."
    parts = [NOTE]
    for cell in json.loads(read(root/'nbs/index.ipynb'))['cells']:
        source = joined(cell['source']).strip()
        if cell['cell_type'] == 'markdown':
            parts.append(relink(source))
            continue
        marks, code = directives(source)
        if HIDDEN & marks.keys():
            continue
        if code and marks.get('echo') != 'false':
            parts.append(f'```python\n{code}\n```')
        if marks.get('output') != 'false':
            parts += [relink(output_markdown(output)) for output in shown_outputs(cell)]
    return '\n\n'.join(part for part in parts if part) + '\n'


# The code of a page

EXPORTS = ('export', 'exporti', 'exports')
LONG = 30       # lines; the source of a longer definition is folded, but on pages about methods
METHODS = re.compile('0[0-8]_|2')
SET_UP = 'use_svg()'    # how figures are drawn, said where the imports are


def parse(code):
    "The statements of a cell; none if it has IPython's own notation."
    try:
        return ast.parse(code).body
    except SyntaxError:
        return []


def fold(code, summary):
    return f'#| code-fold: true\n#| code-summary: "{summary}"\n{code}'


def entry(node, with_words):
    "The heading of an exported definition, which links lead to; with its docstring if asked for."
    source = f'### {node.name} {{#{node.name} .entry}}'
    docstring = ast.get_docstring(node)
    if with_words and docstring:
        sentence = ' '.join(docstring.split('\n\n')[0].split())
        source += f'\n\n*{sentence}*'
    return dict(cell_type='markdown', id=f'entry-{node.name}', metadata={}, source=source)


def exported_cells(cell, marks, code, methods, run):
    "An exported cell as its page shows it: a heading for each definition, then the source."
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in parse(code) if isinstance(node, kinds)]
    named = [node for node in nodes if node.name[0] != '_' and 'exporti' not in marks]
    kept = [f'#| {name}: {value}' for name, value in marks.items() if name not in EXPORTS]
    long = code.count('\n') >= LONG and not methods and named
    if long:
        names = ', '.join(node.name for node in nodes)
        code = fold(code, f'Source of {names}')
    elif named and 'code-fold' in marks and 'code-summary' not in marks:
        names = ', '.join(node.name for node in named)
        kept.append(f'#| code-summary: "Source of {names}"')
    lines = ['#| exec_doc'] if run else []
    source = '\n'.join([*lines, *kept, code])
    return [*(entry(node, long) for node in named), cell | {'source': source}]


def only_folded(cell):
    "Is a cell a fold without a name of its own, and without anything to see below it?"
    if cell['cell_type'] != 'code' or cell['outputs']:
        return False
    return directives(joined(cell['source']))[0] == {'code-fold': 'true'}


def add_folded(shown, cell, marks, code):
    "Put a cell at the end; folds in a row are one."
    last = shown[-1] if shown else None
    nameless = marks.get('code-fold') == 'true' and 'code-summary' not in marks
    if last and nameless and only_folded(last):
        lines = [f'#| {name}: {value}' for name, value in marks.items()]
        before = directives(joined(last['source']))[1]
        source = '\n'.join([*lines, before, '', code])
        shown[-1] = cell | {'source': source}
    else:
        shown.append(cell)


def show_code(cells, methods):
    """The cells of a notebook for nbdev: nothing exported is hidden, folds in a row are one box.

    nbdev runs the cells that a page needs to be run, marked `exec_doc`, and nothing else.
    """
    parted = [directives(joined(cell['source'])) for cell in cells if cell['cell_type'] == 'code']
    run = any('exec_doc' in marks for marks, _ in parted)
    shown = []
    imports = None      # the cell of imports that ends `shown`
    for cell in cells:
        if cell['cell_type'] != 'code':
            shown.append(cell)
            imports = None
            continue
        marks, code = directives(joined(cell['source']))
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in parse(code)}
        exported = any(name in marks for name in EXPORTS)
        if kinds == {True, False} and not exported and 'exec_doc' not in marks:
            # nbdev would run it for its import, without the cells above it
            cell = cell | {'source': f'#| eval: false\n{joined(cell["source"])}'}
        if 'hide' in marks or 'default_exp' in marks or marks.get('echo') == 'false':
            shown.append(cell)
        elif (kinds == {True} or code.strip() == SET_UP) and imports:
            before = directives(imports['source'])[1]
            imports['source'] = fold(f'{before}\n{code}', 'Imports')
        elif kinds == {True}:
            imports = cell | {'source': fold(code, 'Imports'), 'outputs': []}
            shown.append(imports)
        else:
            imports = None
            if exported or run:
                shown += exported_cells(cell, marks, code, methods, run) if exported else [cell]
            else:
                add_folded(shown, cell, marks, code)
    return shown


def is_entry(cell):
    "Whether nbdev added the cell to document a definition, whose source is there already."
    return cell['cell_type'] == 'code' and re.search(r'^show_doc\(', joined(cell['source']), re.M)


# The pages

KATEX = re.compile(r'https://[^"\s]+/katex@[^"/\s]+/dist')
FONTS = re.compile(r'@import\s*url\(["\']?https?:[^)]*\)[^;]*;')
SOURCE = re.compile(r'<p>\s*<a href="/?blob/[^>]*>source</a>\s*</p>')
LINK_IN_LINK = re.compile(r'\[\[(`[^`\n]+`)\]\([^)\s]*\)\]\(')
LINK_IN_CODE = re.compile(r'\[(`[^`<]+`)\]\(/[\w.]+\.html#[^)<]*\)')
LINK = re.compile(r'<a href="([\w.]+\.html)#([^"]+)"([^>]*)>(.*?)</a>', re.S)
MATH = re.compile(r'<span class="math display">.*?</span>', re.S)
MORE = r'(?:(?:–|-|, | and | to )\d+)*'
EQUATION = re.compile(rf'\bEq(?:\.|uation) ?\d+|\bEq(?:s\.|uations) ?\d+{MORE}')
# warnings about what is there for Quarto or nbdev, and of links by nbdev that `settle` sees to
EXPECTED = re.compile('html-math-method|output-file|skip_exec|skip_showdoc|broken link /')
UNLINKED = {'a', 'button', 'code', 'h1', 'h2', 'h3', 'h4', 'nav', 'pre', 'script', 'summary',
            'svg'}


def page_name(notebook):
    "The page of a notebook, named as nbdev does: '07_dra.ipynb' gives 'dra.html'."
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', Path(notebook).stem).lower() + '.html'


def page_names(notebooks):
    "smalldocs's name of each page → its name on the site."
    names = {}
    for notebook in notebooks:
        page = page_name(notebook)
        if page in names.values():
            raise ValueError(f'notebooks: got two that give {page}, allowed one name a page')
        names[f'{Path(notebook).stem}.html'] = page
    return names


def localize(html, names):
    "Point links at files of the site, without the network and without the notebooks' numbers."
    numbered = '|'.join(map(re.escape, sorted(names, key=len, reverse=True)))
    html = re.sub(rf'(?<=[/"])({numbered})(?=["#?])', lambda match: names[match[1]], html)
    html = LINK_IN_CODE.sub(r'\1', SOURCE.sub('', html))
    return KATEX.sub('katex', html)


def settle(html, names, anchors):
    "Lead links to the entries they name; nbdev's own links that name nothing become plain code."
    def one(match):
        page, anchor, attributes, text = match.groups()
        by_nbdev = page not in names        # an author's link still has the notebook's number
        page = names.get(page, page)
        if by_nbdev and re.fullmatch('<code>[a-z]+</code>', text):
            return text                     # a word such as `places` means many things
        lower = anchor.lower()
        for found in (anchor, lower, lower.split('.')[0]):
            if found in anchors.get(page, ()):
                return f'<a href="{page}#{found}"{attributes}>{text}</a>'
        return text if by_nbdev else match[0]

    return LINK.sub(one, html)


def anchor_equations(html, page, homes):
    "Put `eq-10` where the book first shows Eq. 10, and note the address in `homes`."
    def mark(match):
        anchors = ''
        for number in re.findall(r'\\tag\{(\d+)\}', match[0]):
            if number not in homes:
                homes[number] = f'{page}#eq-{number}'
                anchors += f'<span id="eq-{number}" class="equation"></span>'
        return anchors + match[0]

    return MATH.sub(mark, html)


def link_equations(html, homes):
    "Make 'Eq. 10' in running text a link to the equation."
    def number(match):
        address = homes.get(match[1])
        return f'<a href="{address}">{match[0]}</a>' if address else match[0]

    def words(match):
        return re.sub(r'(?:Eq\D+)?(\d+)', number, match[0])

    head, main, rest = html.partition('<main')
    depth = 0
    parts = re.split(r'(<[^>]*>)', main + rest)     # text at even places, tags at odd ones
    for i, part in enumerate(parts):
        tag = re.match(r'<(/?)(\w+)', part)
        if tag and tag[2] in UNLINKED:
            depth += -1 if tag[1] else 1
        elif not depth and i % 2 == 0:
            parts[i] = EQUATION.sub(words, part)
    return head + ''.join(parts)


FIGURE = re.compile(r'<figure\b.*?</figure>', re.S)
CAPTION = re.compile(r'<figcaption[^>]*>(.*?)</figcaption>', re.S)
PICTURE = re.compile(r'<(img|svg)\b(?![^>]*\b(?:alt|aria-label)="[^"])')
TAGS = re.compile(r'<[^>]*>')
NOTEBOOK = (
    '<p class="notebook">This page is a notebook: <a href="notebooks/{name}" download>{name}</a>. '
    'Run it with <code>python3 scripts/run.py lab {stem}</code>.</p>')
SKIP = '<a class="skip-link" href="#quarto-document-content">Skip to the text</a>'
# what a page does once it is there: the menu shows where one is, keys reach a wide equation
SCRIPT = """<script>
(() => {
  const here = document.querySelector('#quarto-sidebar a.active');
  const menu = document.querySelector('#quarto-sidebar');
  const show = () => {
    if (!here) return;
    const place = here.getBoundingClientRect().top - menu.getBoundingClientRect().top;
    if (place > menu.clientHeight - 40 || place < 0) menu.scrollTop += place - menu.clientHeight/3;
  };
  const reach = () => document.querySelectorAll('.math.display').forEach(box => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute('tabindex');
  });
  addEventListener('load', () => { show(); reach(); });
  addEventListener('resize', reach);
})();
</script>"""


def describe_pictures(html):
    "Give every picture in a figure its caption as the text that is read instead."
    def one(match):
        caption = CAPTION.search(match[0])
        if not caption:
            return match[0]
        text = escape(unescape(TAGS.sub('', caption[1])).strip())
        words = {'img': f'alt="{text}"', 'svg': f'role="img" aria-label="{text}"'}
        return PICTURE.sub(lambda found: f'<{found[1]} {words[found[1]]}', match[0])

    return FIGURE.sub(one, html)


TABLE = re.compile(r'<table\b.*?</table>', re.S)
CODE = re.compile(r'(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>)', re.S)
CELL = re.compile(r'<t([hd])\b([^>]*)>(.*?)(?=</t\1>)', re.S)
PHONE = 44      # letters that fit beside one another in a table on a narrow phone


def join_intervals(html):
    "Keep a number and the half of its interval on one line; code stays as it is."
    parts = CODE.split(html)
    parts[::2] = [re.sub(r'(?<=\d) ± (?=\d)', '\u00a0±\u00a0', part) for part in parts[::2]]
    return ''.join(parts)


HALF = re.compile(r'\u00a0±\u00a0\d+(?:\.\d+)?')
PLAIN = re.compile(r'[+−]?\d+(?:\.\d+)?')
NUMBERS = re.compile(r'(?!.*±.*\()[\d.,+−±≈×%()!–\s]*\d[\d.,+−±≈×%()!–\s]*')
MANY = 9        # columns that need smaller letters


def align_numbers(html):
    "A number without an interval stands below those that have one; no number is broken."
    def one(match):
        head, *rows = re.split(r'(?=<tr\b)', match[0])
        columns = zip(*([cell[3] for cell in CELL.finditer(row)] for row in rows))
        halves = []
        for column in columns:
            found = [(HALF.search(text) or [''])[0] for text in column]
            halves.append(max(found, key=len))

        def lined_up(row):
            left = iter(halves)

            def cell(found):
                half = next(left, '')
                kind, attributes, text = found.groups()
                if kind == 'h':
                    return found[0]
                shown = TAGS.sub('', text)
                if NUMBERS.fullmatch(shown):
                    attributes = f' data-number{attributes}'
                if half and PLAIN.fullmatch(shown):
                    room = f'<span class="half" data-half="{half}"></span>'
                    text = f'{text.removesuffix("</div>")}{room}'
                    text += '</div>' * text.startswith('<div>')
                return f'<td{attributes}>{text}'

            return CELL.sub(cell, row)

        if len(halves) >= MANY:
            head = head.replace('class="', 'class="many ', 1)
        return head + ''.join(map(lined_up, rows))

    return TABLE.sub(one, html)


def stack_tables(html):
    "Let the rows of tables that are too wide for a phone become lists there: cells know their head."
    def one(match):
        rows = [[TAGS.sub('', cell[3]).strip() for cell in CELL.finditer(row)]
                for row in re.split(r'<tr\b', match[0])[1:]]
        heads, *rest = rows or [[]]
        if not rest or any(len(row) != len(heads) for row in rest):
            return match[0]
        # a no-break space holds a word together
        words = [max(map(len, ' '.join(map(unescape, column)).split(' ')), default=0)
                 for column in zip(*rows)]
        if sum(words) + len(words) <= PHONE:
            return match[0]

        def labelled(row):
            names = iter(heads)
            return CELL.sub(lambda cell: f'<t{cell[1]}{cell[2]} '
                            f'data-label="{escape(unescape(next(names)))}">'
                            f'{cell[3] and f"<div>{cell[3]}</div>"}', row)

        head, *body = re.split(r'(?=<tr\b)', match[0])
        text = head + body[0] + ''.join(map(labelled, body[1:]))
        return text.replace('class="', 'class="stacked ', 1)

    return TABLE.sub(one, html)


def help_readers(html, name):
    "Say what pictures, buttons and table heads are; a way past the menu and to the notebook."
    html = align_numbers(stack_tables(join_intervals(describe_pictures(html))))
    html = html.replace('<button title="Copy to Clipboard"',
                        '<button title="Copy to Clipboard" aria-label="Copy this code"')
    html = re.sub(r'<th(?=[\s>])(?![^>]*\bscope=)', '<th scope="col"', html)
    html = re.sub(r'(<body\b[^>]*>)', lambda match: match[1] + SKIP, html, count=1)
    line = NOTEBOOK.format(name=name, stem=Path(name).stem)
    head, end, rest = html.rpartition('</main>')
    html = head + line + end + rest
    return html.replace('</body>', f'{SCRIPT}\n</body>')


def finish(out, notebooks):
    "Turn what smalldocs wrote into the site."
    names = page_names(notebooks)
    for path in (out/'site_libs/themes').rglob('*.css'):
        write(path, FONTS.sub('', read(path)))
    pages, homes, anchors = {}, {}, {}
    sources = {page_name(notebook): notebook for notebook in notebooks}
    for numbered, page in sorted(names.items()):
        html = read(out/numbered)
        if re.match('0[1-8]_', numbered):
            html = anchor_equations(html, page, homes)
        pages[page] = html
        anchors[page] = set(re.findall(r'\bid="([^"]+)"', html))
        (out/numbered).unlink()
    for page, html in pages.items():
        html = localize(settle(html, names, anchors), names)
        html = help_readers(link_equations(html, homes), sources[page])
        write(out/page, html)
    write(out/'search.json', localize(read(out/'search.json'), names))


def build(out='_docs', root=ROOT, workers=2):
    "Build the site; its folder, and what smalldocs warned of."
    out = root/out
    if out.exists() and any(out.iterdir()) and not (out/'site_libs').exists():
        raise ValueError(f'folder: got {out}, allowed an empty folder or one with an older site')
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    from smalldocs.site import build as render
    # nbdev finds its settings from the notebooks' folder, and their cells their files
    with contextlib.chdir(root/'nbs'), tempfile.TemporaryDirectory() as folder:
        refresh_quarto_yml()
        nbs = Path(folder)/'nbs'
        shutil.copytree(root/'nbs', nbs, ignore=shutil.ignore_patterns('results', '.*'))
        for path in nbs.glob('*.ipynb'):
            notebook = json.loads(read(path))
            notebook['cells'] = show_code(notebook['cells'], METHODS.match(path.name))
            write(path, json.dumps(notebook))
        proc = proc_nbs(str(nbs), n_workers=workers, force=True)
        for source in (root/'_quarto.yml', root/'nbs/nbdev.yml'):
            shutil.copy2(source, proc/source.name)
        for path in proc.glob('*.ipynb'):
            notebook = json.loads(read(path))
            for cell in notebook['cells']:
                if cell['cell_type'] == 'code':
                    cell['outputs'] = shown_outputs(cell)
                else:       # nbdev links a name also where it is the text of an author's link
                    cell['source'] = LINK_IN_LINK.sub(r'[\1](', joined(cell['source']))
            notebook['cells'] = [cell for cell in notebook['cells'] if not is_entry(cell)]
            write(path, json.dumps(notebook))
        site = render(proc, quiet=True)
    notebooks = sorted(path.name for path in proc.glob('*.ipynb'))
    finish(site.out, notebooks)
    (site.out/'notebooks').mkdir()
    for name in notebooks:
        shutil.copy2(root/'nbs'/name, site.out/'notebooks'/name)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(site.out, out)
    return out, [line for line in site.warnings if not EXPECTED.search(line)]


def main(words):
    if words == ['readme']:
        write(ROOT/'README.md', readme())
    elif words[:1] == ['build'] and len(words) <= 2:
        out, warnings = build(*words[1:], workers=os.cpu_count() or 1)
        for line in warnings:
            print(f'site.py: warning: {line}', file=sys.stderr)
        print(out/'index.html')
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main(sys.argv[1:])
