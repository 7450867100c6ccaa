"""Learning happens: one run of the stored table, made again.

A rate divided by a thousand, a frozen adapter or a mask that lets nothing pass would still give
base accuracies above chance; here the run must come within two points of its record, and train
better than it began."""
from pathlib import Path

from dra_nb.bench.results import read_results
from dra_nb.clip import load_clip
from dra_nb.data import load_dataset
from dra_nb.evaluation import base_to_new
from dra_nb.methods import build_method

STORED = Path(__file__).parents[1]/'nbs'/'results'/'base_to_new'


def test_vehicles():
    record, = [r for r in read_results(STORED)
               if (r.method, r.dataset, r.seed) == ('dra', 'vehicles', 1)]
    method = build_method('dra', load_clip('glyph-clip', device='cpu'), seed=1)
    found = base_to_new(method, load_dataset('vehicles'), seed=1)
    for part in ('base', 'new'):
        difference = found['metrics'][part]-record.metrics[part]
        assert abs(difference) <= 2, (part, found['metrics'], record.metrics)
    first, last = found['history'][0], found['history'][-1]
    assert last['ce'] < .8*first['ce'] and last['accuracy'] > first['accuracy']+5
