"""Set up a virtual environment in .venv and do one job in it; only Python >= 3.10 must be there.

    python3 scripts/run.py demo         fine-tune on the embedded benchmark, print the table
    python3 scripts/run.py test         run every notebook and all tests
    python3 scripts/run.py lab [PAGE]   open a page of the book in JupyterLab, e.g. `lab 07_dra`
    python3 scripts/run.py docs         build the docs site into _docs/
    python3 scripts/run.py sync         export and clean the notebooks, write README.md
    python3 scripts/run.py check        fail unless notebooks, modules and README.md agree

Each installs first what it needs. What follows the job's name is handed on: `demo --help`, and for
`test` to pytest: `test -k dra`. Before the job's name may stand
    --cpu           PyTorch's CPU build (torch and torchvision): 0.3 GB instead of several
    --venv FOLDER   another place for the environment
    --no-install    use the environment as it is
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_WHEELS = 'https://download.pytorch.org/whl/cpu'
NO_PIP = 'on Debian and Ubuntu: sudo apt-get install python3-venv'
ONE_THREAD = dict(OMP_NUM_THREADS='1')      # two processes of one thread beat two of two


def say(message):
    print(f'run.py: {message}', file=sys.stderr)


def fail(message, code=1):
    say(message)
    sys.exit(code)


def sh(*command, **env):
    "Run a command in the repository; where it fails we end with its exit code."
    words = [str(word) for word in command]
    print('+', *(word.removeprefix(f'{ROOT}/') for word in words), flush=True)
    code = subprocess.run(words, cwd=ROOT, env={**os.environ, **env}).returncode
    if code:
        sys.exit(code)


class Venv:
    "A virtual environment with pip, also where Debian's python3-venv is not installed."

    def __init__(self, folder):
        windows = os.name == 'nt'
        self.bin = folder/('Scripts' if windows else 'bin')
        self.python = self.bin/('python.exe' if windows else 'python')
        if not self.has_pip():
            self.create(folder)

    def has_pip(self):
        if not self.python.exists():
            return False
        asked = subprocess.run([self.python, '-c', 'import pip'], stderr=subprocess.DEVNULL)
        return asked.returncode == 0

    def create(self, folder):
        try:
            import venv
        except ImportError:
            fail(f'this Python has no venv module; {NO_PIP}')
        try:
            import ensurepip
        except ImportError:
            ensurepip = None
        print(f'+ virtual environment in {folder}', flush=True)
        venv.EnvBuilder(with_pip=bool(ensurepip), symlinks=os.name != 'nt').create(folder)
        if not ensurepip:
            self.borrow_pip()

    def borrow_pip(self):
        "Without ensurepip (Debian's python3 alone), let the system's pip install one."
        pip = [sys.executable, '-m', 'pip', '--python', str(self.python)]
        if subprocess.run([*pip, 'install', '--quiet', 'pip']).returncode:
            fail(f'this Python has neither ensurepip nor pip; {NO_PIP}')

    def install(self, what, cpu=False):
        pip = [self.python, '-m', 'pip', 'install', '--disable-pip-version-check']
        if not sys.stdout.isatty():
            pip.append('--quiet')
        try:
            if cpu:
                sh(*pip, '--index-url', CPU_WHEELS, 'torch', 'torchvision')
            sh(*pip, '-e', what)
        except SystemExit:      # pip's own word on a full disk is easily overlooked
            free = shutil.disk_usage(ROOT).free/1e9
            say(f'the installation failed; {free:.0f} GB are free here, '
                'PyTorch with CUDA takes up to 10 while it is unpacked, see --cpu')
            raise


def git(*command):
    done = subprocess.run(['git', *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        fail(f'git {command[0]}: {done.stderr.strip()}')
    return done.stdout


def find_page(name):
    "The notebook meant by '07', '07_dra', 'dra' or its file name."
    pages = sorted((ROOT/'nbs').glob('[!._]*.ipynb'))
    stem = Path(name).stem
    for page in pages:
        if stem in (page.stem, *page.stem.split('_', 1)):
            return page
    fail(f'page: got {name!r}, allowed {", ".join(page.stem for page in pages)}', 2)


def demo(venv, *words):
    sh(venv.bin/'dra-nb', 'demo', *words)


def test(venv, *words):
    workers = min(4, os.cpu_count() or 1)
    sh(venv.bin/'nbdev_test', '--n_workers', workers, '--timing', **ONE_THREAD)
    shared = ['-n', str(workers), '--dist', 'loadfile']       # a file's tests stay together
    sh(venv.python, '-m', 'pytest', *shared, *words, **ONE_THREAD)


def lab(venv, *words):
    options = list(words)
    named = options and not options[0].startswith('-')
    page = find_page(options.pop(0) if named else '00_notation')
    if os.name != 'nt' and os.geteuid() == 0:       # a container's root, whom Jupyter refuses
        options.append('--allow-root')
    sh(venv.bin/'jupyter', 'lab', page, *options)


def docs(venv, *words):
    sh(venv.python, 'scripts/site.py', 'build', *words)


def sync(venv):
    sh(venv.bin/'nbdev_export')
    sh(venv.bin/'nbdev_clean')
    sh(venv.python, 'scripts/site.py', 'readme')


def check(venv):
    "What sync would change is an error."
    before = git('status', '--porcelain') + git('diff')
    sync(venv)
    if git('status', '--porcelain') + git('diff') != before:
        changed = git('status', '--short')
        fail(f'not in sync: run `python3 scripts/run.py sync` and commit\n{changed}')
    print('notebooks, modules and README.md agree')


JOBS = dict(demo=demo, test=test, lab=lab, docs=docs, sync=sync, check=check)


def main(words):
    folder, cpu, install = ROOT/'.venv', False, True
    while words and words[0].startswith('-') and words[0] not in ('-h', '--help'):
        option = words.pop(0)
        if option == '--cpu':
            cpu = True
        elif option == '--no-install':
            install = False
        elif option == '--venv' and words:
            folder = Path(words.pop(0)).resolve()
        else:
            fail(f'unknown option {option!r}; allowed: --cpu, --venv FOLDER, --no-install', 2)
    if not words or words[0] in ('-h', '--help'):
        print(__doc__)
        sys.exit(0 if words else 2)
    job, *rest = words
    if job not in JOBS:
        fail(f'unknown job {job!r}; allowed: {", ".join(JOBS)}', 2)
    if job in ('sync', 'check') and rest:
        fail(f'{job}: got {" ".join(rest)}, allowed nothing after it', 2)
    if sys.version_info < (3, 10):
        fail(f'Python {sys.version.split()[0]} is too old; 3.10 or newer is needed')
    venv = Venv(folder)
    if install:
        venv.install('.' if job == 'demo' else '.[dev]', cpu)
    JOBS[job](venv, *rest)


if __name__ == '__main__':
    main(sys.argv[1:])
