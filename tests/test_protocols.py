"The protocols beside base to new: across sets, and inside the base classes."
from dataclasses import replace

import pytest

from conftest import save_images, save_tiny_clip
from dra_nb.bench import runs as bench_runs
from dra_nb.bench.results import read_results
from dra_nb.bench.runs import bench, find_dataset, grid, make_runs, run_missing
from dra_nb.data import glyphs
from dra_nb.training import TrainingDiverged


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Two folders of images and the file of a small CLIP of eight blocks a tower."
    folder = tmp_path_factory.mktemp('world')
    for name,classes in (('source', 12), ('target', 4)):
        for k in range(classes):
            save_images(folder/name/f'class {k:02}', 8, 100*k, (20, 20))
    save_tiny_clip(folder/'clip.safetensors')
    return folder


def settings(world):
    return dict(datasets=[str(world/'source')], pretrained=str(world/'clip.safetensors'), shots=2,
                device='cpu')


def test_across_sets(world, tmp_path):
    table = dict(methods=['zero-shot', 'dra'], seeds=[1, 2], protocol='cross',
                 targets=[str(world/'target')], **settings(world))
    records = bench(folder=tmp_path, **table)
    assert len(records) == 3
    for r in records:
        assert list(r.metrics) == ['source', 'target']
        assert r.counts['train'] == 24                              # all classes
        if r.method != 'zero-shot':
            assert (r.run['config']['start'], r.run['train']['epochs']) == (7, 1)
    assert bench(folder=tmp_path, **table) == records


def test_a_target_is_opened_where_it_is(world, tmp_path):
    "The root of an own source is its folder of images, and not that of the targets."
    mine = {**settings(world), 'datasets': ['mine']}
    targets = [str(world/'target'), 'vehicles']
    record, = bench(['zero-shot'], seeds=[1], protocol='cross', targets=targets, folder=tmp_path,
                    root=str(world/'source'), **mine)
    assert list(record.metrics) == ['mine', 'target', 'vehicles']
    wanted = {'target': find_dataset(targets[0])[1], 'vehicles': glyphs.VERSION}
    assert record.run['targets'] == wanted


def test_the_recipe_across_domains_is_that_across_sets(world):
    target = [str(world/'target')]
    runs = [make_runs(['dra'], seeds=[1], protocol=p, targets=target, **settings(world))[0]
            for p in ('cross', 'domain-shift')]
    assert runs[0].config == runs[1].config and runs[0].train == runs[1].train
    assert runs[0].key != runs[1].key


def test_settings_are_searched_without_test_images(world, tmp_path, monkeypatch):
    seen = set()
    whole = bench_runs.train_and_test

    def train_and_test(method, source, tests, *rest):
        for part in (source.train, *(t.test for t in tests.values())):
            seen.update(o.path for o in part)
        return whole(method, source, tests, *rest)

    monkeypatch.setattr(bench_runs, 'train_and_test', train_and_test)
    base = make_runs(['adapter'], seeds=[1], protocol='inner-split', train=dict(epochs=1),
                     **settings(world))
    tried = grid(base, {'config.scale': (.1, .3), 'train.lr': (.01, .1)})
    records = run_missing(tried, tmp_path)
    assert len(records) == len(read_results(tmp_path)) == 4
    pairs = {(r.run['config']['scale'], r.run['train']['lr']) for r in records}
    assert pairs == {(.1, .01), (.1, .1), (.3, .01), (.3, .1)}
    dataset, _ = find_dataset(str(world/'source'))
    assert seen and not seen & {o.path for o in dataset.test}
    assert seen < {o.path for o in dataset.train+dataset.val}


def test_in_a_search_a_setting_that_diverges_counts_as_nothing_right(world, monkeypatch):
    def diverge(*args, **kwargs):
        raise TrainingDiverged('the loss became inf at step 3', 3)

    monkeypatch.setattr(bench_runs, 'train_and_test', diverge)
    run = make_runs(['adapter'], seeds=[1], protocol='inner-split', **settings(world))[0]
    record = bench_runs.make(run)
    assert record.metrics == dict(base=0., new=0., hm=0.) and record.train == dict(loss=None)
    assert 'loss became' in record.failed
    with pytest.raises(TrainingDiverged):
        bench_runs.make(replace(run, protocol='base-to-new'))


def test_every_seed_plays_another_third(world):
    runs = make_runs(['zero-shot', 'adapter'], seeds=[1, 2, 3], protocol='inner-split',
                     **settings(world))
    assert len(runs) == 6                   # untrained methods too: the classes change
