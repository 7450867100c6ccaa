"""Set up a virtual environment in .venv and do one job in it, with nothing but a Python >= 3.10 to start from.

    python3 scripts/run.py demo     install the package, fine-tune on the embedded benchmark, print the table
    python3 scripts/run.py test     install what development needs, run every notebook and all tests
    python3 scripts/run.py lab      install what development needs, open the book in JupyterLab
    python3 scripts/run.py docs     build the docs site into _docs/
    python3 scripts/run.py sync     export and clean the notebooks, write README.md
    python3 scripts/run.py check    fail unless notebooks are exported and clean and README.md is current

What follows the job's name is handed on, e.g. `demo --help`. Before it may stand
    --cpu           PyTorch's CPU build (torch and torchvision from the same place): 0.3 GB instead of several
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


def fail(message):
    sys.exit(f'run.py: {message}')


def sh(*command, **env):
    "Run a command in the repository; its exit code is ours if it fails."
    print('+', *(str(o).removeprefix(f'{ROOT}/') for o in command), flush=True)
    code = subprocess.run([str(o) for o in command], cwd=ROOT, env={**os.environ, **env}).returncode
    if code: sys.exit(code)


class Venv:
    "A virtual environment with pip, also where Debian's python3-venv is not installed."
    def __init__(self, folder):
        self.bin = folder/('Scripts' if os.name == 'nt' else 'bin')
        self.python = self.bin/('python.exe' if os.name == 'nt' else 'python')
        if not self.has_pip(): self.create(folder)

    def has_pip(self):
        return self.python.exists() and not subprocess.run([self.python, '-c', 'import pip'], stderr=subprocess.DEVNULL).returncode

    def create(self, folder):
        try: import venv
        except ImportError: fail('this Python has no venv module; on Debian and Ubuntu: sudo apt-get install python3-venv')
        try: import ensurepip
        except ImportError: ensurepip = None
        print(f'+ virtual environment in {folder}', flush=True)
        venv.EnvBuilder(with_pip=bool(ensurepip), symlinks=os.name != 'nt').create(folder)
        if not ensurepip: self.borrow_pip()

    def borrow_pip(self):
        "Without ensurepip (Debian's python3 alone), let the system's pip install one, if there is any."
        borrowed = subprocess.run([sys.executable, '-m', 'pip', '--python', str(self.python), 'install', '--quiet', 'pip'])
        if borrowed.returncode: fail('this Python has neither ensurepip nor pip; on Debian and Ubuntu: sudo apt-get install python3-venv')

    def install(self, what, cpu=False):
        pip = [self.python, '-m', 'pip', 'install', '--disable-pip-version-check', *([] if sys.stdout.isatty() else ['--quiet'])]
        if cpu: sh(*pip, '--index-url', CPU_WHEELS, 'torch', 'torchvision')
        try: sh(*pip, '-e', what)
        except SystemExit:      # pip's own word on a full disk is easily overlooked
            print(f'run.py: the installation failed; {shutil.disk_usage(ROOT).free/1e9:.0f} GB are free here, PyTorch with CUDA takes up to 10 while it is unpacked, see --cpu', file=sys.stderr)
            raise


def git(*command):
    return subprocess.run(['git', *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def demo(venv, *args): sh(venv.bin/'dra-nb', 'demo', *args)

def test(venv, *args):
    "One thread a process: two workers with two threads each are slower than two with one."
    workers = str(max(1, min(4, os.cpu_count() or 1)))
    sh(venv.bin/'nbdev_test', '--n_workers', workers, '--timing', OMP_NUM_THREADS='1')
    sh(venv.python, '-m', 'pytest', *args, OMP_NUM_THREADS='1')

def lab(venv, *args): sh(venv.bin/'jupyter', 'lab', ROOT/'nbs/00_notation.ipynb', *args)

def docs(venv, *args): sh(venv.bin/'dra-nb', 'docs', *args)

def sync(venv, *args):
    sh(venv.bin/'nbdev_export')
    sh(venv.bin/'nbdev_clean')
    sh(venv.python, '-c', 'from dra_nb.docs import write_readme; write_readme()')

def check(venv, *args):
    "What sync would change is an error."
    state = lambda: (git('status', '--porcelain'), git('diff'))
    before = state()
    sync(venv)
    if state() != before: fail(f'not in sync: run `python3 scripts/run.py sync` and commit\n{git("status", "--short")}')
    print('notebooks, modules and README.md agree')


JOBS = dict(demo=demo, test=test, lab=lab, docs=docs, sync=sync, check=check)

def main(argv):
    folder, cpu, install = ROOT/'.venv', False, True
    while argv and argv[0].startswith('--') and argv[0] != '--help':
        option = argv.pop(0)
        if option == '--cpu': cpu = True
        elif option == '--no-install': install = False
        elif option == '--venv' and argv: folder = Path(argv.pop(0)).resolve()
        else: fail(f'unknown option {option!r}; see --help')
    if not argv or argv[0] not in JOBS:
        print(__doc__)
        return 0 if argv in (['--help'], ['-h']) else 2
    if sys.version_info < (3, 10): fail(f'Python {sys.version.split()[0]} is too old; 3.10 or newer is needed')
    venv = Venv(folder)
    job, *args = argv
    if install: venv.install('.' if job == 'demo' else '.[dev]', cpu)
    JOBS[job](venv, *args)
    return 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
