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


def test_every_notebook_has_a_page(pages):
    from dra_nb.docs import page_name
    notebooks = [o.name for o in (ROOT/'nbs').glob('*.ipynb') if o.name[0] not in '._']
    assert set(pages) == {page_name(o) for o in notebooks}

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
        problems += [f'{o!r} in the text' for o in ('$$', r'\(', r'\[', ':::', '{#', '{.', '#|') if o in text]
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

def test_search_finds_a_page(pages, address, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    browser.get(address + 'index.html')
    failures(browser)
    browser.find_element(By.CSS_SELECTOR, '.smalldocs-search input').send_keys('README')
    hits = WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, '.smalldocs-search a[href]'))
    assert any('docs.html' in o.get_attribute('href') for o in hits)
    assert failures(browser) == []
