"Two processes (gloo, on a CPU) train what one process trains."
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from torch.testing import assert_close

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '0', '--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0']

def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=500, env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done

@pytest.mark.parametrize('method', ['adapter', 'dra'])
def test_two_processes_give_the_curve_of_one(tmp_path, method):
    "The same losses and weights, noise of DRA included; for DRA also when stopped and resumed within an epoch."
    run(sys.executable, HERE/'ddp_fit.py', method, tmp_path/'one.pt')
    run(*TORCHRUN, HERE/'ddp_fit.py', method, tmp_path/'two.pt', *([tmp_path/'checkpoint.pt'] if method == 'dra' else []))
    one, two = (torch.load(tmp_path/f'{n}.pt', weights_only=True) for n in ('one', 'two'))
    assert (one['world'], two['world']) == (1, 2) and len(one['history']) == 3
    for a, b in zip(one['history'], two['history']): assert b == pytest.approx(a, rel=1e-4)
    for k, v in one['weights'].items(): assert_close(two['weights'][k], v, rtol=1e-3, atol=1e-5)      # Eq. 19's sign may flip where the gap is nearly zero
    assert one['history'][0]['loss'] != pytest.approx(one['history'][-1]['loss'], rel=1e-3)      # something was learned

def test_fit_on_the_command_line(tmp_path):
    program = Path(sys.executable).with_name('dra-nb')
    done = run(*TORCHRUN, '--no-python', program, 'fit', 'vehicles', '--subset', 'base', '--shots', '1', '--epochs', '1', '--device', 'cpu', '--out', tmp_path/'w')
    assert done.stdout.count('weights in') == 1                                # one process writes and speaks
    facts = json.loads((tmp_path/'w'/'run.json').read_text())
    assert len(facts['history']) == 1 and (tmp_path/'w').joinpath('run.json').exists()
    assert any(p.suffix == '.safetensors' for p in (tmp_path/'w').iterdir()) and not (tmp_path/'w'/'checkpoint.pt').exists()

def test_a_stopped_fit_says_so_once(tmp_path):
    "A loss that is no number stops every process; the first one keeps the weights and tells."
    program = Path(sys.executable).with_name('dra-nb')
    words = [*TORCHRUN, '--no-python', program, 'fit', 'vehicles', '--subset', 'base', '--shots', '1', '--epochs', '9', '--lr', '1e38', '--device', 'cpu', '--out', tmp_path/'w']
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=500, env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode and done.stderr.count('dra-nb: the loss became') == 1 and 'exitcode  : 2' in done.stderr, done.stderr[-3000:]
    assert 'Traceback' not in done.stderr.split('torch/distributed')[0]                       # ours is one line
    assert sorted(p.name for p in (tmp_path/'w'/'last-good').iterdir()) == ['adapters.safetensors', 'config.json']
