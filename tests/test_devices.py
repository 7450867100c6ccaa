"Every method on a second device, in a process of its own: the device is one for all of PyTorch."
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from dra_nb.methods import METHODS

# how PyTorch lets Python make up a device, since release 2.9
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'),
    reason='this PyTorch has no devices in Python')
SCRIPT = Path(__file__).with_name('second_device.py')


def test_no_method_mixes_devices():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert {line.split(',')[0] for line in said} == set(METHODS)


def test_a_mixture_is_an_error():
    "What every method is tried on can fail: a CPU tensor beside one that is there."
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import torch, second_device as s\n"
               "with s.Watch():\n"
               "    there = torch.ones(3).to(s.NAME)\n"
               "    print((there + 1).device, (there * there).raw.sum().item())\n"
               "    there + torch.ones(3)")
    done = subprocess.run([sys.executable, '-c', program, str(SCRIPT.parent)],
                          capture_output=True, text=True)
    assert done.stdout == 'second:0 3.0\n'
    assert done.returncode == 1 and 'Mixed: aten.add.Tensor' in done.stderr
