"The methods against numbers of their authors' code; `official.py` tells how."
from pathlib import Path

import numpy as np
import pytest

from official import CASES, Deviation, check_file

FILES = sorted((Path(__file__).parent/'fixtures'/'official').glob('*.npz'))
KNOWN = [f for f in FILES if f.stem.partition('_')[0] in CASES]


@pytest.mark.parametrize('path', KNOWN, ids=lambda path: path.stem)
def test_file(path):
    lines, _ = check_file(path)
    assert lines


def changed(path, target, key, factor):
    "A copy of a file in which one array is a little larger."
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[key] = arrays[key]*np.float32(factor)
    np.savez_compressed(target, **arrays)
    return target


@pytest.mark.parametrize('key', ['logits', 'text_features_raw', 'loss_ce', 'grad/prompt_learner.ctx',
                                 'step3/prompt_learner.ctx', 'loss_history', 'step3_logits'])
def test_a_deviation_is_seen(key, tmp_path):
    path = changed(FILES[0].parent/'coop.npz', tmp_path/'other.npz', key, 1.001)
    with pytest.raises(Deviation, match=key):
        check_file(path)
