"""What README tells people to type, typed."""
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1]/'README.md'


def test_script(tmp_path):
    "The script runs as it stands and prints three percentages."
    script, = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.S)
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r'base ([\d.]+), new ([\d.]+), harmonic mean ([\d.]+)', done.stdout)
    base, new, mean = map(float, found.groups())
    assert 10 < base < 100 and 10 < new < 100 and abs(mean - 2*base*new/(base+new)) < .1
    assert not list(tmp_path.iterdir())              # it writes nothing
