"A page of the book in a real JupyterLab: opened in a headless Chromium, run from its menu, saved, and read again."
import contextlib, json, os, shutil, subprocess, sys, time
from pathlib import Path
from urllib.request import urlopen

import pytest
from test_site import browser, missing  # noqa: F401, a fixture

ROOT = Path(__file__).parent.parent
PAGE = '00_notation.ipynb'

def read(url):
    with urlopen(url, timeout=20) as answer: return json.load(answer)

def wait(what, ask, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask(): return answer
        time.sleep(.2)
    pytest.fail(f'{what}: not within {seconds} s')


@pytest.fixture
def checkout(tmp_path):
    "A copy, since the last cell of a page exports the notebooks of the checkout it lies in."
    for o in ('settings.ini', '_quarto.yml'): shutil.copy(ROOT/o, tmp_path)
    for o in ('nbs', 'dra_nb'): shutil.copytree(ROOT/o, tmp_path/o, ignore=shutil.ignore_patterns('assets', '__pycache__', '.*'))
    nb = json.loads((ROOT/'nbs'/PAGE).read_text(encoding='utf-8'))
    for o in nb['cells']:
        if o['cell_type'] == 'code': o['outputs'] = []
    (tmp_path/'nbs'/PAGE).write_text(json.dumps(nb), encoding='utf-8')
    return tmp_path

@pytest.fixture
def lab(checkout):
    "Address of a JupyterLab with folders of its own."
    pytest.importorskip('jupyterlab')
    folders = {f'JUPYTER_{o}_DIR': str(checkout/o.lower()) for o in ('CONFIG', 'DATA', 'RUNTIME')}
    env = {**os.environ, **folders, 'IPYTHONDIR': str(checkout/'ipython'), 'OMP_NUM_THREADS': '1'}
    for o in ('IN_TEST', 'MPLBACKEND'): env.pop(o, None)       # as a reader's shell has it: figures are shown
    options = ['--no-browser', '--ip=127.0.0.1', '--port=0', '--allow-root', '--IdentityProvider.token=', f'--ServerApp.root_dir={checkout/"nbs"}',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.news_url=']
    log = (checkout/'lab.log').open('w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], cwd=checkout, env=env, stdout=log, stderr=log)
    def address():
        if server.poll() is not None: pytest.fail((checkout/'lab.log').read_text())
        for o in (checkout/'runtime').glob('jpserver-*.json'):
            with contextlib.suppress(OSError, ValueError):
                url = json.loads(o.read_text())['url']
                if read(url + 'api'): return url
    yield wait('JupyterLab answers', address)
    server.terminate() # it ends its kernels first
    try: server.wait(60)
    except subprocess.TimeoutExpired: server.kill(); server.wait(60)

def press(browser, menu, command):
    "Choose a command from a menu of the page."
    from selenium.webdriver.common.by import By
    bar = wait(f'menu {menu}', lambda: [o for o in browser.find_elements(By.CSS_SELECTOR, '#jp-MainMenu .lm-MenuBar-item') if o.text == menu])
    bar[0].click()
    wait(command, lambda: browser.find_elements(By.CSS_SELECTOR, f'.lm-Menu-item[data-command="{command}"]:not(.lm-mod-disabled)'))[0].click()


def test_a_page_runs_in_jupyterlab(lab, checkout, browser):
    from selenium.webdriver.common.by import By
    browser.get(f'{lab}lab/tree/{PAGE}')
    wait('the notebook opens', lambda: browser.find_elements(By.CSS_SELECTOR, '.jp-Notebook .jp-Cell'))
    def idle():
        for o in browser.find_elements(By.CSS_SELECTOR, '.jp-Dialog .jp-mod-accept'): o.click() # which kernel? the one proposed
        return [o['kernel']['execution_state'] for o in read(f'{lab}api/sessions')] == ['idle']
    wait('its kernel is idle', idle)
    press(browser, 'Run', 'runmenu:run-all')
    def cells():
        press(browser, 'File', 'docmanager:save')
        time.sleep(1)
        return [o for o in json.loads((checkout/'nbs'/PAGE).read_text(encoding='utf-8'))['cells'] if o['cell_type'] == 'code']
    failed = lambda found: [p for o in found for p in o['outputs'] if p['output_type'] == 'error']
    def ran(): return idle() and (found := cells()) and (failed(found) or all(o['execution_count'] for o in found)) and found
    found = wait('every cell has run', ran)
    assert failed(found) == []
    stored = json.loads((ROOT/'nbs'/PAGE).read_text(encoding='utf-8'))
    kinds = lambda o: [sorted(p['data']) if 'data' in p else p['name'] for p in o['outputs']]
    assert [kinds(o) for o in found] == [kinds(o) for o in stored['cells'] if o['cell_type'] == 'code']
    assert browser.find_elements(By.CSS_SELECTOR, '.jp-Notebook .jp-OutputArea-output')
