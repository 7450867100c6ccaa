"The docs site, built afresh and opened page by page in a headless Chromium that has no network."
import functools, json, os, re, shutil, sys, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900'''.split()
PHONE = dict(width=360, height=740, deviceScaleFactor=1, mobile=False)

def missing(what):
    "Without a browser these tests are left out, but not where nobody would notice."
    if os.environ.get('CI'): pytest.fail(f'CI without {what}')
    pytest.skip(f'no {what}; on Debian and Ubuntu: apt-get install chromium chromium-driver')


@pytest.fixture(scope='session')
def built():
    if sys.version_info < (3, 11): missing('Python 3.11, which smalldocs needs')
    pytest.importorskip('smalldocs')
    from dra_nb.docs import build
    return build(root=ROOT, workers=min(4, os.cpu_count() or 1))

@pytest.fixture(scope='session')
def site(built): return built[0]

@pytest.fixture(scope='session')
def pages(site): return {o.name: o.read_text(encoding='utf-8') for o in sorted(site.glob('*.html'))}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def address(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    if not CHROMIUM: missing('Chromium')
    if not DRIVER: missing('chromedriver')
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp('chromium')
    for o in (*FLAGS, f'--user-data-dir={profile}', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'): options.add_argument(o)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()

def events(browser): return [json.loads(o['message'])['message'] for o in browser.get_log('performance')]

def failures(browser):
    "Requests of a page that failed or were answered with an error, and console messages above information."
    bad, asked = [], {}
    for o in events(browser):
        p = o['params']
        if o['method'] == 'Network.requestWillBeSent': asked[p['requestId']] = p['request']['url']
        if o['method'] == 'Network.loadingFailed' and p['requestId'] in asked and not p.get('canceled'):
            bad.append(f'{p["errorText"]} {asked[p["requestId"]]}')
        if o['method'] == 'Network.responseReceived' and p['response']['status'] >= 400: bad.append(f'{p["response"]["status"]} {p["response"]["url"]}')
    bad += [o['message'] for o in browser.get_log('browser') if o['level'] in ('WARNING', 'SEVERE')]
    return [o for o in bad if 'favicon.ico' not in o]


def main(html):
    "The page's own part, without menus."
    return html[html.index('<main'):html.index('</main>')]

def test_every_notebook_and_module_has_a_page(pages):
    from dra_nb.docs import modules, page_name, source_name
    notebooks = [o.name for o in (ROOT/'nbs').glob('*.ipynb') if o.name[0] not in '._']
    sources = [source_name(o.relative_to(ROOT)) + '.html' for o in modules(ROOT/'dra_nb').values()]
    assert set(pages) == {page_name(o) for o in notebooks} | set(sources)

def test_no_warnings(built): assert built[1] == []

def test_internal_links_resolve(pages, site):
    ids = {name: set(re.findall(r'\bid="([^"]+)"', html)) for name, html in pages.items()}
    broken = []
    for name, html in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]*)"', html):
            url = urlsplit(link.replace('&amp;', '&'))
            if url.scheme or url.netloc: continue
            path = unquote(url.path).removeprefix('./') or name
            if not (site/path).exists(): broken.append((name, link))
            elif url.fragment and path in ids and unquote(url.fragment) not in ids[path]: broken.append((name, link))
    assert broken == []

def test_nothing_is_loaded_from_elsewhere(pages):
    loads = r'<(?:script|img|iframe)[^>]*\bsrc="(https?:)?//[^"]*"|<link[^>]*\bhref="(?:https?:)?//[^"]*"'
    assert {name: m[0] for name, html in pages.items() if (m := re.search(loads, html))} == {}


def test_pages_in_the_browser(pages, address, browser):
    "No failed request, no console message; equations set and no notation left as text."
    bad = {}
    for name, html in pages.items():
        browser.get(address + name)
        text = browser.execute_script('''
            const main = document.querySelector('main').cloneNode(true)
            main.querySelectorAll('pre, code, .katex, script, style').forEach(o => o.remove())
            return main.textContent''')
        problems = failures(browser)
        problems += [f'{o!r} in the text' for o in ('$$', r'\(', r'\[', ':::', '{#', '{.', '#|', '](') if o in text]
        formulas, raw = html.count('class="math '), browser.execute_script('return document.querySelectorAll(".math").length - document.querySelectorAll(".math .katex").length')
        if formulas and raw: problems.append(f'{raw} of {formulas} equations not set')
        if '](/' in html: problems.append('a link left as Markdown')
        wrong = browser.execute_script('return [...document.querySelectorAll(".katex-error")].map(o => o.title)')
        bad |= {name: problems + wrong} if problems + wrong else {}
    assert bad == {}

def test_phone_width(pages, address, browser):
    "Nothing makes a page wider than a phone; wide tables, code and equations scroll inside themselves."
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', PHONE)
    wide = {}
    for name in pages:
        browser.get(address + name)
        width = browser.execute_script('return document.documentElement.scrollWidth')
        if width > PHONE['width']: wide[name] = width
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert wide == {}

@pytest.mark.parametrize('word, page', [('Gumbel', 'sorting.html'), ('README', 'docs.html'), ('token_scores', 'scoring.html')])
def test_search_finds_a_page(word, page, pages, address, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    browser.get(address + 'index.html')
    failures(browser)
    browser.find_element(By.CSS_SELECTOR, '.smalldocs-search input').send_keys(word)
    hits = WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, '.smalldocs-search a[href]'))
    found = [o.get_attribute('href').removeprefix(address).split('#')[0] for o in hits]
    assert page in found and set(found) <= set(pages)
    assert failures(browser) == []

def test_dark_mode(address, browser):
    "The switch turns paper and ink around, and the next page remembers."
    from selenium.webdriver.common.by import By
    def brightness(of):
        colour = browser.execute_script(f'return getComputedStyle(document.body).{of}')
        return sum(map(int, re.findall(r'\d+', colour)[:3])) / 765
    switch = '.quarto-color-scheme-toggle'
    try:
        browser.get(address + 'scoring.html')
        failures(browser)
        assert brightness('backgroundColor') > .9 > .4 > brightness('color')
        next(o for o in browser.find_elements(By.CSS_SELECTOR, switch) if o.is_displayed()).click()
        assert brightness('backgroundColor') < .3 < .8 < brightness('color')
        browser.get(address + 'index.html')
        assert brightness('backgroundColor') < .3
        assert failures(browser) == []
    finally: browser.execute_script('localStorage.clear()')


def test_names_lead_to_entries_and_sources(pages):
    "The list of names has every public name; its line in the module is where the name is defined; entries lead there too."
    from dra_nb.docs import page_name, public_names, source_name
    names = public_names(ROOT/'dra_nb')
    assert len(names) > 100
    for o in names:
        path = f'dra_nb/{o.module.replace(".", "/")}.py'
        place = f'{source_name(path)}.html#L{o.line}'
        assert f'<code>{o.name}</code>' in pages['api.html'] and f'href="{place}"' in pages['api.html'], o
        assert o.name.split('.')[-1] in (ROOT/path).read_text(encoding='utf-8').splitlines()[o.line-1], o
    by_page = {page_name(o.notebook) for o in names}
    assert [o for o in by_page if 'class="source" href="source_' not in pages[o]] == []

def test_words_are_no_links(pages):
    "`places` is a data set on one page, `dra` a module on another, and functions elsewhere."
    assert '<code>places</code>' in pages['glyphs.html'] and 'sorting.html#places' not in main(pages['glyphs.html'])
    assert 'dra_method.html#dra"' not in main(pages['notation.html'])
    assert '<a href="scoring.html#token_scores"><code>token_scores</code></a>' in main(pages['notation.html'])

def test_every_equation_in_two_clicks(pages):
    "From README and from the home page to a page that links to each equation, where the equation stands."
    from dra_nb.docs import equations, page_name
    book = {f'{page_name(o.notebook)}#eq-{o.number}': o for o in equations(ROOT/'nbs')}
    assert [o.number for o in book.values()] == list(range(1, 21))
    first = set(re.findall(r'href="([\w.]+\.html)', main(pages['index.html'])))
    second = {o for name in first for o in re.findall(r'href="([^"]+)"', main(pages[name]))}
    assert set(book) <= second
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    notebooks = [json.loads((ROOT/o).read_text(encoding='utf-8')) for o in set(re.findall(r'\]\((nbs/\w+\.ipynb)', readme))]
    stored = '\n'.join(json.dumps(o) for o in notebooks)
    assert [o for o in book.values() if f'({o.notebook}#eq-{o.number})' not in stored] == []
    for o in book.values():
        html = pages[page_name(o.notebook)]
        where = html.index(f'id="eq-{o.number}"')
        assert f'\\tag{{{o.number}}}' in html[where:where + 3000].split('</p>')[0]

def test_verdicts_are_all_there(pages):
    "Every verdict on file stands in the table, with a way to the page that measured it."
    from html import unescape
    from dra_nb.claims import VERDICTS, read_claims
    from dra_nb.docs import page_name
    table = unescape(re.sub(r'<(?!a |/a)[^>]*>', '', main(pages['does_it_hold.html'])))
    claims = read_claims(ROOT/'nbs/results/claims')
    assert claims and f'{len(claims)} claims are on file' in table
    for o in claims:
        assert o['verdict'] in VERDICTS and (ROOT/'nbs'/o['page']).exists() and o['name'][:2] == o['page'][:2], o
        assert f'href="{page_name(o["page"])}' in table, o
    assert sum(table.count(mark + ' ' + v) for mark, v in zip(('✓', '(✓)', '✗', '?'), VERDICTS)) >= len(claims)

def test_authors_are_named(pages):
    from html import unescape
    from dra_nb.glyphs import artwork
    page = unescape(pages['attribution.html'])
    assert [o for o in artwork().styles if not (o['author'] in page and o['licence'] in page and o['package'] in page)] == []
    assert 'all-MiniLM-L6-v2' in page and 'KaTeX' in page and 'open_clip_torch' in page

def test_widgets_show_a_picture_instead(pages):
    "What a widget leaves behind without a kernel is neither shown nor asked for."
    left = re.compile(r'application/vnd\.jupyter\.widget|<pre><code>(?:Output|VBox|HBox|interactive)\(|jupyter-widgets|require\.js')
    assert {name: m[0] for name, html in pages.items() if not name.startswith(('source_', 'docs')) and (m := left.search(html))} == {}
