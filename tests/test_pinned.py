"""Learning happens: one stored run with the package's weights, made again.

A rate divided by a thousand, a frozen adapter or a mask that lets nothing pass would still give
base accuracies above chance; here the run must come within two points of its record, and train
better than it began."""
from pathlib import Path

from dra_nb.bench.results import read_results
from dra_nb.clip import load_clip
from dra_nb.data import load_dataset
from dra_nb.evaluation import base_to_new
from dra_nb.methods import build_method
from dra_nb.weights import weights_digest

# made by: dra-nb bench --methods dra-recommended --datasets vehicles --seeds 1
STORED = Path(__file__).parent/'fixtures'/'pinned'


def test_vehicles():
    record, = read_results(STORED)
    assert (record.method, record.dataset, record.seed) == ('dra-recommended', 'vehicles', 1)
    assert record.run['weights'] == weights_digest('glyph-clip'), 'other weights: make the run anew'
    method = build_method('dra-recommended', load_clip('glyph-clip', device='cpu'), seed=1)
    found = base_to_new(method, load_dataset('vehicles'), seed=1)
    for part in ('base', 'new'):
        difference = found['metrics'][part]-record.metrics[part]
        assert abs(difference) <= 2, (part, found['metrics'], record.metrics)
    first, last = found['history'][0], found['history'][-1]
    assert last['ce'] < .8*first['ce'] and last['accuracy'] > first['accuracy']+5
