"The docs site, built afresh and opened page by page in a headless Chromium without a network."
import builtins
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import threading
import zipfile
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which('chromedriver')
FLAGS = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage
--window-size=1400,900'''.split()
NO_NETWORK = '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'
PHONE = dict(width=390, height=844, deviceScaleFactor=1, mobile=False)

# What of a page's text is prose, which of its formulas are set, and which boxes hide a part.
ASK = '''
const main = document.querySelector('main'), prose = main.cloneNode(true)
prose.querySelectorAll('pre, code, .katex, script, style').forEach(o => o.remove())
const boxes = [...main.querySelectorAll('pre')].filter(o => o.clientWidth)
const all = o => [...document.querySelectorAll(o)]
return {
    text: prose.textContent,
    unset: all('.math').length - all('.math .katex').length,
    wrong: all('.katex-error').map(o => o.title),
    boxes: boxes.length,
    cut: boxes.filter(o => o.scrollWidth > o.clientWidth + 1).map(o => o.textContent.slice(0, 80)),
    silent: all('main img').filter(o => !o.alt.trim()).length
        + all('main figure svg').filter(o => !o.getAttribute('aria-label')).length,
    heads: all('main th:not([scope])').length,
    buttons: all('button').filter(o => !(o.ariaLabel || o.textContent.trim())).length,
    seen: (() => {
        const here = document.querySelector('#quarto-sidebar a.active')
        if (!here) return false
        const menu = document.querySelector('#quarto-sidebar').getBoundingClientRect()
        const place = here.getBoundingClientRect()
        return place.top >= menu.top && place.bottom <= menu.bottom })(),
}'''

# What scrolls sideways on a phone and is no code and no drawing, which equations are set smaller
# than the text, and which words of drawings are too small to read.
ASK_PHONE = '''
const sideways = o => o.clientWidth && o.scrollWidth > o.clientWidth + 1
    && ['auto', 'scroll'].includes(getComputedStyle(o).overflowX)
return {
    width: document.documentElement.scrollWidth,
    tables: [...document.querySelectorAll('main table')].filter(o => o.offsetParent
        && o.getBoundingClientRect().width > o.parentElement.getBoundingClientRect().width + 1)
        .map(o => o.textContent.slice(0, 60)),
    small: [...document.querySelectorAll('main .math.display')].filter(o =>
        parseFloat(getComputedStyle(o).fontSize)
        < .99*parseFloat(getComputedStyle(o.parentElement).fontSize)).map(o => o.textContent),
    scrolls: [...document.querySelectorAll('main *')].filter(sideways)
        .filter(o => !o.matches('pre.sourceCode, div.sourceCode, .sourceCode code, .math.display'))
        .filter(o => !o.querySelector(':scope > svg'))
        .map(o => `${o.tagName}.${o.className}: ${o.textContent.slice(0, 60)}`),
    tiny: [...document.querySelectorAll('main figure svg text')].filter(o => {
        const {a, b} = o.getScreenCTM()
        return o.textContent.trim()
            && Math.hypot(a, b)*parseFloat(getComputedStyle(o).fontSize) < 7.5
    }).map(o => o.textContent.trim()),
}'''


def missing(what):
    "Without a browser these tests are left out, but not where nobody would notice."
    if os.environ.get('CI'):
        pytest.fail(f'CI without {what}')
    pytest.skip(f'no {what}; on Debian and Ubuntu: apt-get install chromium chromium-driver')


def builder():
    "The module scripts/site.py, under a name that is not the standard library's."
    spec = importlib.util.spec_from_file_location('docs_site', ROOT/'scripts/site.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebooks():
    return sorted(o.name for o in (ROOT/'nbs').glob('[!._]*.ipynb'))


@pytest.fixture(scope='module')
def built():
    if sys.version_info < (3, 11):
        missing('Python 3.11, which smalldocs needs')
    if importlib.util.find_spec('smalldocs') is None:
        missing('smalldocs, which the development extras install')
    return builder().build(workers=min(4, os.cpu_count() or 1))


@pytest.fixture(scope='module')
def site(built):
    return built[0]


@pytest.fixture(scope='module')
def pages(site):
    return {o.name: o.read_text(encoding='utf-8') for o in sorted(site.glob('*.html'))}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def address(site):
    handler = functools.partial(Quiet, directory=site)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not CHROMIUM:
        missing('Chromium')
    if not DRIVER:
        missing('chromedriver')
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp('chromium')
    for flag in (*FLAGS, f'--user-data-dir={profile}', NO_NETWORK):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def failures(browser):
    "Requests since the last call that failed, and console messages above information."
    bad = []
    asked = {}
    for entry in browser.get_log('performance'):
        event = json.loads(entry['message'])['message']
        method, facts = event['method'], event['params']
        if method == 'Network.requestWillBeSent':
            asked[facts['requestId']] = facts['request']['url']
        if method == 'Network.loadingFailed' and facts['requestId'] in asked:
            if not facts.get('canceled'):
                bad.append(f'{facts["errorText"]} {asked[facts["requestId"]]}')
        if method == 'Network.responseReceived' and facts['response']['status'] >= 400:
            bad.append(f'{facts["response"]["status"]} {facts["response"]["url"]}')
    for entry in browser.get_log('browser'):
        if entry['level'] in ('WARNING', 'SEVERE'):
            bad.append(entry['message'])
    return [line for line in bad if 'favicon.ico' not in line]


@pytest.fixture(scope='module')
def visits(pages, address, browser):
    "Every page opened once: what ASK says, what failed, and its width on a phone."
    found = {}
    for name in pages:
        browser.get(address + name)
        facts = browser.execute_script(ASK)
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', PHONE)
        facts |= browser.execute_script(ASK_PHONE)
        browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
        found[name] = facts | dict(failed=failures(browser))
    return found


def main(html):
    "The page's own part, without menus."
    return html[html.index('<main'):html.index('</main>')]


def test_every_notebook_has_a_page(pages):
    assert sorted(pages) == sorted(map(builder().page_name, notebooks()))


def test_every_page_stands_in_the_sidebar_once(pages):
    page = pages['index.html']
    menu = page[page.index('class="sidebar-menu-container"'):page.index('<main')]
    links = re.findall(r'<a\b[^>]*href="([\w.]+\.html)"', menu)
    assert sorted(links) == sorted(pages)


def test_no_warnings(built):
    assert built[1] == []


def test_internal_links_resolve(pages, site):
    ids = {name: set(re.findall(r'\bid="([^"]+)"', html)) for name, html in pages.items()}
    broken = []
    for name, html in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]*)"', html):
            url = urlsplit(unescape(link))
            if url.scheme or url.netloc:
                continue
            path = unquote(url.path).removeprefix('./') or name
            anchor = unquote(url.fragment)
            if not (site/path).exists() or anchor and anchor not in ids.get(path, [anchor]):
                broken.append((name, link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages, site):
    source = r'<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//[^"]*"'
    loads = re.compile(source + r'|<link[^>]*\bhref="(?:https?:)?//[^"]*"|@import[^;]*https?:')
    texts = pages | {o.name: o.read_text(encoding='utf-8') for o in site.rglob('*.css')}
    assert {name: found[0] for name, text in texts.items() if (found := loads.search(text))} == {}


def test_no_request_fails(visits):
    assert {name: o['failed'] for name, o in visits.items() if o['failed']} == {}


def test_equations_are_set(visits):
    assert sum(not o['unset'] for o in visits.values()) > 10
    assert {name: o['wrong'] for name, o in visits.items() if o['unset'] or o['wrong']} == {}


def test_no_notation_is_left_as_text(pages, visits):
    marks = re.compile(r'\$\$|\\\(|\\\[|:::|\{#|\{\.|#\||\]\(')
    left = {name: marks.findall(facts['text']) for name, facts in visits.items()}
    assert {name: found for name, found in left.items() if found} == {}
    assert [name for name, html in pages.items() if '](/' in html] == []


def test_phone_width(visits):
    "Nothing makes a page wider than a phone; wide boxes scroll inside themselves."
    wide = {name: o['width'] for name, o in visits.items() if o['width'] > PHONE['width']}
    assert wide == {}


def test_tables_fit_on_a_phone(visits):
    wide = {name: o['tables'] for name, o in visits.items() if o['tables']}
    assert wide == {}


def test_what_scrolls_on_a_phone(visits):
    "Code, wide equations and drawings; no equation is made smaller to fit, no words of drawings."
    wide = {name: o['scrolls'] for name, o in visits.items() if o['scrolls']}
    assert wide == {}
    assert {name: o['small'] for name, o in visits.items() if o['small']} == {}
    assert {name: o['tiny'] for name, o in visits.items() if o['tiny']} == {}


def test_no_box_is_cut(visits):
    "On a window 1400 px wide all code and all that is printed is to be seen."
    assert sum(o['boxes'] for o in visits.values()) > 500
    assert {name: o['cut'] for name, o in visits.items() if o['cut']} == {}


def test_pages_for_everybody(visits, pages):
    "Pictures, table heads and buttons say what they are, and there is a way past the menu."
    for fault in ('silent', 'heads', 'buttons'):
        assert {name: o[fault] for name, o in visits.items() if o[fault]} == {}, fault
    assert [name for name, html in pages.items() if 'class="skip-link"' not in html] == []


def test_the_menu_shows_where_one_is(visits):
    assert [name for name, o in visits.items() if not o['seen']] == []


def test_order_of_the_menu(pages):
    page = pages['index.html']
    menu = page[page.index('class="sidebar-menu-container"'):page.index('<main')]
    said = ['The method', 'The methods compared', 'Results', 'Use', 'Tools', 'Reference']
    places = [menu.index(f'menu-text">{words}') for words in said]
    assert places == sorted(places)


def test_every_page_leads_to_its_notebook(pages, site):
    for name in notebooks():
        page = pages[builder().page_name(name)]
        assert f'href="notebooks/{name}"' in page, name
        assert f'scripts/run.py lab {Path(name).stem}</code>' in page, name
        assert (site/'notebooks'/name).read_bytes() == (ROOT/'nbs'/name).read_bytes()


def test_code_is_on_the_page(pages):
    "Every definition that is exported shows its source."
    hidden = []
    for name in notebooks():
        page = unescape(re.sub(r'<[^>]*>', '', main(pages[builder().page_name(name)])))
        for marks, code in code_cells(name):
            if marks.keys() & {'export', 'exporti', 'exports'}:
                lines = [line for line in code.splitlines() if re.match('(class|def) ', line)]
                hidden += [(name, line) for line in lines if line not in page]
    assert hidden == []


def code_cells(name):
    "(directives, code) of every code cell of a notebook."
    notebook = json.loads((ROOT/'nbs'/name).read_text(encoding='utf-8'))
    cells = [o for o in notebook['cells'] if o['cell_type'] == 'code']
    return [builder().directives(''.join(o['source'])) for o in cells]


def to_be_seen(name):
    "The code that a page shows, cell by cell, without IPython's own lines."
    for marks, code in code_cells(name):
        if marks.keys() & {'hide', 'default_exp'} or marks.get('echo') == 'false':
            continue
        lines = [line for line in code.splitlines() if not line.startswith(('%', '!'))]
        yield '\n'.join(lines)


AT_ONCE = {'listcomp', 'setcomp', 'dictcomp', 'genexpr'}


def definitions(table):
    "Names that a cell gives a value, also from within its functions."
    found = {o.get_name() for o in table.get_symbols() if table.get_type() == 'module'
             and (o.is_assigned() or o.is_imported() or o.is_namespace())}
    found |= {o.get_name() for o in table.get_symbols() if o.is_declared_global()}
    return found.union(*map(definitions, table.get_children()))


def uses(table, at_once=True):
    "Global names that a cell needs: when it runs, and when its functions are called."
    symbols = [o for o in table.get_symbols() if o.is_referenced()]
    if table.get_type() != 'module':
        symbols = [o for o in symbols if o.is_global()]
    names = {o.get_name() for o in symbols}
    now, later = (names, set()) if at_once else (set(), names)
    for child in table.get_children():
        child_at_once = child.get_type() == 'class' or child.get_name() in AT_ONCE
        for mine, theirs in zip((now, later), uses(child, at_once and child_at_once)):
            mine |= theirs
    return now, later


def undefined(cells):
    "(cell, name) of what a reader who copies the cells would miss."
    known = {*dir(builtins), 'display', 'get_ipython', '__name__'}
    missed, called = [], set()
    for place, code in enumerate(cells):
        table = symtable.symtable(code, 'cell', 'exec')
        known |= definitions(table)
        now, later = uses(table)
        missed += [(place, name) for name in sorted(now - known)]
        called |= later
    return missed + [('in a function', name) for name in sorted(called - known)]


def test_undefined_names_are_found():
    assert undefined(['import math', 'math.pi', 'print([x for x in y])']) == [(2, 'y')]
    assert undefined(['def f(): return g()', 'g = 1']) == []
    assert undefined(['def f(): return g()', 'f()']) == [('in a function', 'g')]
    assert undefined(['a', 'a = 1']) == [(0, 'a')]


@pytest.mark.parametrize('name', notebooks())
def test_what_a_page_shows_is_complete(name):
    "Every name in a visible cell is imported or defined in a visible cell above."
    assert undefined(to_be_seen(name)) == []


@pytest.mark.parametrize('name', ['57_seeds.ipynb', '56_checks.ipynb', '09_files.ipynb'])
def test_what_a_page_shows_runs(name):
    "Copied from top to bottom into a script."
    code = '\n\n'.join(to_be_seen(name))
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT/'nbs', text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize('word, page', [
    ('Gumbel', 'sorting.html'), ('KaTeX', 'attribution.html'), ('token_scores', 'scoring.html')])
def test_search_finds_a_page(word, page, pages, address, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    hits = (By.CSS_SELECTOR, '.smalldocs-search a[href]')
    browser.get(address + 'index.html')
    failures(browser)
    browser.find_element(By.CSS_SELECTOR, '.smalldocs-search input').send_keys(word)
    shown = WebDriverWait(browser, 10).until(lambda browser: browser.find_elements(*hits))
    links = [o.get_attribute('href').removeprefix(address) for o in shown]
    found = {link.split('#')[0] for link in links}
    assert page in found and found <= set(pages)
    assert failures(browser) == []


def test_dark_mode(address, browser):
    "The switch turns paper and ink around, and the next page remembers."
    from selenium.webdriver.common.by import By

    def brightness(of):
        script = f'return getComputedStyle(document.body).{of}'
        colour = re.findall(r'\d+', browser.execute_script(script))
        return sum(map(int, colour[:3]))/765

    try:
        browser.get(address + 'scoring.html')
        assert brightness('backgroundColor') > .9 > .4 > brightness('color')
        for switch in browser.find_elements(By.CSS_SELECTOR, '.quarto-color-scheme-toggle'):
            if switch.is_displayed():
                switch.click()
                break
        assert brightness('backgroundColor') < .3 < .8 < brightness('color')
        browser.get(address + 'index.html')
        assert brightness('backgroundColor') < .3
    finally:
        browser.execute_script('localStorage.clear()')


def test_words_are_no_links(pages):
    "A function's name in prose leads to its entry; a word such as `places` means many things."
    linked = '<a href="scoring.html#token_scores"><code>token_scores</code></a>'
    assert linked in main(pages['notation.html'])
    assert '<code>places</code>' in pages['glyphs.html']
    assert 'sorting.html#places' not in main(pages['glyphs.html'])


def test_every_equation_in_two_clicks(pages):
    "From the home page to one that links to each equation, where the equation stands."
    anchors = {}
    for name, html in pages.items():
        for number, follows in re.findall(r'id="eq-(\d+)"(?=(.{0,3000}))', html, re.S):
            assert f'\\tag{{{number}}}' in follows.split('</p>')[0]
            anchors[int(number)] = f'{name}#eq-{number}'
    assert sorted(anchors) == list(range(1, 21))
    first = set(re.findall(r'href="([\w.]+\.html)', main(pages['index.html'])))
    second = {link for name in first for link in re.findall(r'href="([^"]+)"', main(pages[name]))}
    assert set(anchors.values()) <= second


def test_every_name_is_listed(pages):
    "The list of names has every exported function of a module made from a notebook."
    listed = set(re.findall(r'<code>([\w.]+)</code>', main(pages['api.html'])))
    exported = set()
    for path in (ROOT/'dra_nb').rglob('*.py'):
        names = re.search(r'^__all__ = \[(.*?)\]', path.read_text(encoding='utf-8'), re.M | re.S)
        if names and path.name[0] != '_':
            exported |= set(re.findall(r"'(\w+)'", names[1]))
    assert len(exported) > 100 and sorted(exported - listed) == []


def test_verdicts_are_all_there(pages):
    "Every verdict on file stands in the table, with a way to the page that measured it."
    from dra_nb.claims import VERDICTS, read_claims
    table = unescape(re.sub(r'<(?!a |/a)[^>]*>', '', main(pages['does_it_hold.html'])))
    claims = read_claims(ROOT/'nbs/results/claims')
    assert claims
    for claim in claims:
        assert claim['verdict'] in VERDICTS and (ROOT/'nbs'/claim['page']).exists(), claim
        assert f'href="{builder().page_name(claim["page"])}' in table, claim
    marked = zip(('✓', '(✓)', '✗', '?'), VERDICTS)
    assert sum(table.count(f'{mark} {verdict}') for mark, verdict in marked) >= len(claims)


def test_authors_are_named(pages):
    "Whose drawings and tools these are, with licence and package of each style."
    page = unescape(pages['attribution.html'])
    with zipfile.ZipFile(ROOT/'dra_nb/assets/glyphs.zip') as artwork:
        styles = json.loads(artwork.read('index.json'))['styles']
    facts = {style[key] for style in styles for key in ('author', 'licence', 'package')}
    facts |= {'all-MiniLM-L6-v2', 'KaTeX', 'open_clip_torch'}
    assert sorted(words for words in facts if words not in page) == []


def test_widgets_show_a_picture_instead(pages):
    "What a widget leaves behind without a kernel is neither shown nor asked for."
    left = re.compile(r'application/vnd\.jupyter\.widget|jupyter-widgets|require\.js|'
                      r'<pre><code>(?:Output|VBox|HBox|interactive)\(')
    assert [name for name, html in pages.items() if left.search(html)] == []


def test_intervals_stay_on_a_line():
    "In words and tables, not in code."
    joined = builder().join_intervals
    assert joined('<td>−1.20 ± 0.30</td>') == '<td>−1.20\u00a0±\u00a00.30</td>'
    for same in ('<p>± is half</p>', '<pre>1 ± 2</pre>', '<p><code>1 ± 2</code> and</p>'):
        assert joined(same) == same


def test_wide_tables_become_lists():
    "On a phone: every cell of a table that is too wide knows its head; others stay as they are."
    def table(heads, cells):
        rows = [''.join(f'<th scope="col">{o}</th>' for o in heads),
                ''.join(f'<td style="text-align: left;">{o}</td>' for o in cells)]
        return ('<table class="table"><thead><tr>{}</tr></thead>'
                '<tbody><tr>{}</tr></tbody></table>').format(*rows)

    small = table(['set', 'new'], ['food', '1.00'])
    assert builder().stack_tables(small) == small
    heads = ['a very long comparison', *(f'accuracy{i}, 5 &lt; 6' for i in range(6))]
    wide = builder().stack_tables(table(heads, ['x <b>y</b>', '', *'12345']))
    assert '<table class="stacked table">' in wide
    assert 'data-label="a very long comparison"><div>x <b>y</b></div></td>' in wide
    assert 'data-label="accuracy0, 5 &lt; 6"></td>' in wide
    assert wide.count('data-label=') == 7


def test_relinking():
    "README's links are the page's, one folder up; code and addresses stay."
    relink = builder().relink
    assert relink('[a](01_clip.ipynb#b) ![c](figures/d.png)') == (
        '[a](nbs/01_clip.ipynb#b) ![c](nbs/figures/d.png)')
    assert relink('[a](../LICENSE) [b](https://c.d) `[e](f)`') == (
        '[a](LICENSE) [b](https://c.d) `[e](f)`')


def test_numbers_stand_below_one_another():
    "A number without an interval leaves the room of one; numbers stay whole, words may break."
    cells = ['49.40\u00a0±\u00a00.62', '<div>45.86</div>', '–', 'not decided',
             '49.4\u00a0±\u00a01.0 (82)']
    rows = ''.join(f'<tr><td>{cell}</td></tr>' for cell in cells)
    shown = builder().align_numbers(f'<table class="t"><tr><th>new</th></tr>{rows}</table>')
    room = '<span class="half" data-half="\u00a0±\u00a00.62"></span>'
    assert shown.count('class="half"') == 1 and f'<div>45.86{room}</div></td>' in shown
    assert f'<td data-number>{cells[0]}</td>' in shown and shown.count('data-number') == 2
    heads = '<th>x</th>'*9
    many = builder().align_numbers(f'<table class="t"><tr>{heads}</tr></table>')
    assert many.startswith('<table class="many t">')


def test_outputs_are_words():
    "What is printed in several goes is one output; a string has no quotes."
    parts = [dict(name='stdout', text=['a\n']), dict(name='stdout', text='b\n')]
    shown = builder().in_one([*parts, dict(name='stderr', text='c')])
    assert [output['text'] for output in shown] == ['a\nb\n', 'c']
    string = dict(data={'text/plain': ["'does not hold'"]})
    assert builder().unquoted(string)['data']['text/plain'] == 'does not hold'
    number = dict(data={'text/plain': ['1.5']})
    assert builder().unquoted(number) == number


def test_folds_in_a_row_are_one():
    "Nameless folds with nothing to see between them are one; the set-up is with the imports."
    def cell(source, outputs=()):
        return dict(cell_type='code', source=source, outputs=list(outputs))

    folded = '#| code-fold: true\n'
    cells = [cell('import os'), cell('use_svg()'), cell(f'{folded}a = 1'), cell(f'{folded}a', [1]),
             cell(f'{folded}b')]
    shown = [o['source'] for o in builder().show_code(cells, False)]
    assert len(shown) == 3 and shown[0].endswith('import os\nuse_svg()')
    assert shown[1] == f'{folded}a = 1\n\na' and shown[2] == f'{folded}b'
