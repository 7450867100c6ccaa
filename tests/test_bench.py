"A table of runs: files, claims, processes, signals, a cluster."
import hashlib
import importlib
import inspect
import json
import linecache
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import save_images, save_tiny_clip, wait_for
from dra_nb.bench import results
from dra_nb.bench import runs as bench_runs
from dra_nb.bench.results import Claim, Record, find_record, read_results
from dra_nb.bench.runs import (bench, code_digest, dataset_digest, make_runs, run_missing,
                               search_table)
from dra_nb.bench.tables import cross_rows, cross_table
from dra_nb.data import Dataset, Item
from dra_nb.methods import METHODS, Method, coop
from dra_nb.methods.base import register
from dra_nb.training import TrainingDiverged


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder of six classes and the file of a small CLIP."
    folder = tmp_path_factory.mktemp('world')
    for k in range(6):
        save_images(folder/'own'/f'class {k}', 6, 10*k, (20, 20))
    clip = save_tiny_clip(folder/'clip.safetensors')
    return dict(datasets=[str(folder/'own')], pretrained=str(clip), shots=2, device='cpu')


def numbers(records):
    "What has to be equal, however the runs were made."
    return [(r.key, r.metrics, r.train) for r in records]


@pytest.mark.parametrize('workers', [1, 2])
def test_a_run_that_diverges_is_named_and_the_others_are_made(world, tmp_path, workers):
    runs = []
    for rate in (.01, 1e6, .02):
        runs += make_runs(['adapter'], seeds=[1], train=dict(epochs=20, lr=rate), **world)
    with pytest.raises(ValueError) as error:
        run_missing(runs, tmp_path, workers)
    said = str(error.value)
    assert said.startswith('1 of 3 runs diverged: adapter on own, seed 1: the loss became')
    assert said.endswith(f'; the other 2 are in {tmp_path}') and 'are kept' not in said
    assert {r.key for r in read_results(tmp_path)} == {runs[0].key, runs[2].key}
    assert not list(tmp_path.glob('.*.claim'))


def test_two_programs_do_not_wait_for_each_others_diverging_runs(world, tmp_path, monkeypatch):
    "What diverged here is free again while this program waits for what the other one is at."
    runs = make_runs(['adapter'], seeds=[1, 2], train=dict(epochs=1), **world)
    theirs = Claim(tmp_path, runs[1].key)
    assert theirs.take()
    proper = bench_runs.make

    def diverge(run, **options):
        if run == runs[0]:
            raise TrainingDiverged('adapter on own, seed 1: the loss became nan at step 1', 1)
        return proper(run, **options)

    def other_program():
        mine = Claim(tmp_path, runs[0].key)
        end = time.monotonic()+30
        while not (seen.is_set() and mine.take()) and time.monotonic() < end:
            time.sleep(.05)
        was_free.append(mine.held)
        mine.release()
        theirs.release()

    def noticing(run, **options):
        seen.set()
        return diverge(run, **options)

    seen, was_free = threading.Event(), []
    monkeypatch.setattr(bench_runs, 'make', noticing)
    other = threading.Thread(target=other_program, daemon=True)
    other.start()
    with pytest.raises(ValueError, match='1 of 2 runs diverged'):
        run_missing(runs, tmp_path)
    other.join(30)
    assert was_free == [True] and find_record(tmp_path, runs[1].key)


def test_resumes_and_repeats(world, tmp_path):
    methods, shown = ['zero-shot', 'adapter'], []
    table = dict(methods=methods, seeds=[1, 2], train=dict(epochs=1), **world)
    first = bench(folder=tmp_path/'a', show=lambda record, n, of: shown.append((n, of)), **table)
    assert shown == [(1, 3), (2, 3), (3, 3)]                    # zero-shot once, whatever the seeds
    files = sorted((tmp_path/'a').glob('*.json'))
    assert sorted(f.stem for f in files) == sorted(r.key for r in first)
    before = [f.stat().st_mtime_ns for f in files]
    files[0].unlink()
    again = bench(folder=tmp_path/'a', **table)
    assert numbers(again) == numbers(first)
    assert [f.stat().st_mtime_ns for f in files[1:]] == before[1:]
    assert {'torch', 'pillow', 'numpy'} <= first[0].versions.keys() and 'thread' in first[0].device
    assert first[1].run['precision'] == 'fp32' and first[1].run['train']['amp'] == 'off'


def test_several_processes_give_the_same(world, tmp_path):
    table = dict(methods=['zero-shot', 'dra'], seeds=[1, 2], train=dict(epochs=1), **world)
    alone = bench(folder=tmp_path/'one', **table)
    together = bench(folder=tmp_path/'two', workers=2, **table)
    assert numbers(together) == numbers(alone)
    assert not list((tmp_path/'two').glob('.*.claim'))


def test_prompts_in_parts_give_the_same(world, tmp_path, monkeypatch):
    "A bench may encode fewer prompts at a time; that is no other run."
    table = dict(methods=['coop'], seeds=[1], train=dict(epochs=1), **world)
    parts = []                                                  # prompts encoded at a time
    encode = coop.encode_text

    def counting(model, given, *args, **kwargs):
        parts.append(len(given.tokens))
        return encode(model, given, *args, **kwargs)

    whole = bench(folder=tmp_path/'whole', **table)
    monkeypatch.setattr(coop, 'encode_text', counting)
    chunked = bench(folder=tmp_path/'parts', text_chunk=1, **table)
    assert 1 in parts
    assert [(r.key, r.metrics) for r in chunked] == [(r.key, r.metrics) for r in whole]
    assert chunked[0].train['loss'] == pytest.approx(whole[0].train['loss'], rel=1e-5)


def test_damaged_and_foreign_files_are_named_and_left(world, tmp_path, capsys):
    runs = make_runs(['zero-shot'], seeds=[1], **world)
    run_missing(runs, tmp_path)
    torn = tmp_path/f'{runs[0].key}.json'
    torn.write_text(torn.read_text()[:40])
    (tmp_path/'list.json').write_text('[1]')
    capsys.readouterr()
    for _ in range(2):
        assert len(run_missing(runs, tmp_path)) == 1
    assert len(torn.read_text()) == 40 and (tmp_path/'list.json').read_text() == '[1]'
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and torn.name in said[0] + said[1] and 'list.json' in said[0] + said[1]
    assert [r.key for r in read_results(tmp_path, print)] == [runs[0].key]
    edited = json.loads((tmp_path/f'{runs[0].key}-again.json').read_text())
    for k,wrong in dict(base=float('nan'), new=True, hm=101).items():
        edited['metrics'][k] = wrong
        with open(tmp_path/f'{runs[0].key}-again.json', 'w') as f:
            json.dump(edited, f)
        assert find_record(tmp_path, runs[0].key) is None


def test_a_run_without_its_weights_is_made_again(world, tmp_path):
    runs = make_runs(['zero-shot', 'adapter'], seeds=[1], train=dict(epochs=1), **world)
    run_missing(runs, tmp_path/'r')
    made = []
    for _ in range(2):
        run_missing(runs, tmp_path/'r', save=tmp_path/'w', show=lambda new, *of: made.append(new))
    assert [record.method for record in made] == ['adapter']
    assert (tmp_path/'w'/made[0].key/'weights.safetensors').is_file()


def test_keys_follow_what_is_read(world, tmp_path):
    "Two sets of one name with other pictures, other weights, another precision: other runs."
    for place,start in (('a', 0), ('b', 500), ('c', 0)):
        for k in range(4):
            save_images(tmp_path/place/'pets'/f'class {k}', 4, start+10*k, (20, 20))

    def key(place='a', **changes):
        settings = {**world, 'datasets': [str(tmp_path/place/'pets')], **changes}
        return make_runs(['adapter'], seeds=[1], **settings)[0].key

    assert key('a') == key('c') != key('b')
    assert len({key(), key(shots=1), key(config=dict(rank=8)), key(train=dict(amp='bf16'))}) == 4
    other = save_tiny_clip(tmp_path/'other.safetensors', seed=1)
    assert key(pretrained=str(other)) != key()


def test_seeds(world):
    "Each once, and at least one."
    runs = make_runs(['adapter'], seeds=[1, 1, 2], **world)
    assert [run.seed for run in runs] == [1, 2]
    with pytest.raises(ValueError, match='seeds: got none, allowed is at least one whole number'):
        make_runs(['adapter'], seeds=[], **world)


def test_a_search_over_an_unknown_setting_is_refused(world, tmp_path):
    records = bench(['adapter'], seeds=[1], train=dict(epochs=1), folder=tmp_path, **world)
    with pytest.raises(ValueError, match="search: got 'config.depth', allowed are config.NAME"):
        search_table(records, {'config.depth': [1, 2]})


def test_tables_of_some_records():
    "What two methods do not share is an empty cell."
    def record(method, seed, **metrics):
        run = dict(protocol='cross', method=method, dataset='general', seed=seed,
                   train=dict(epochs=1))
        return Record(run, metrics, {}, {}, {}, {}, 'cpu')

    some = [record('dra', 1, general=40., food=60.), record('dra', 2, general=41., tools=50.),
            record('coop', 1, general=50., food=70.)]
    rows = {row['dataset']: row for row in cross_rows(some)}
    assert rows['tools']['coop'] is None and rows['average of 2 other sets']['dra'] is None
    lines = {line.split('|')[1].strip(): line for line in cross_table(some).splitlines()}
    cells = [cell.strip() for cell in lines['tools'].split('|')]
    assert cells == ['', 'tools', '50.0', '', '']


def test_too_few_classes_are_refused_before_any_work(world, tmp_path, monkeypatch):
    for k in range(3):
        save_images(tmp_path/'three'/f'class {k}', 6, 10*k, (20, 20))
    monkeypatch.setattr(bench_runs, 'make', lambda *args, **kwargs: pytest.fail('was trained'))
    settings = {**world, 'datasets': [str(tmp_path/'three')]}
    with pytest.raises(ValueError, match='base-to-new needs at least 4'):
        bench(['adapter'], seeds=[1], folder=tmp_path/'results', **settings)


def test_weights_of_every_run_are_kept(world, tmp_path):
    from dra_nb.clip import load_clip
    from dra_nb.methods import load_method, saved_facts
    table = dict(methods=['zero-shot', 'adapter'], seeds=[1, 2], train=dict(epochs=1), **world)
    records = bench(folder=tmp_path/'results', save=tmp_path/'weights', **table)
    kept = {p.name for p in (tmp_path/'weights').iterdir()}
    assert kept == {r.key for r in records if r.trained}
    for name in kept:
        assert saved_facts(tmp_path/'weights'/name)['run']['method'] == 'adapter'
    clip = load_clip('glyph-clip', world['pretrained'], 'cpu')
    assert load_method(tmp_path/'weights'/name, clip).name == 'adapter'


# ---- programs beside one another -----------------------------------------------------------------

PROGRAM = '''
import json, os, sys, time
from dra_nb.bench import runs
from dra_nb.bench.runs import make_runs, run_missing
if __name__ == '__main__':
    settings, folder, workers, epochs = json.loads(sys.argv[1])
    list_of_runs = make_runs(['adapter'], seeds=range(1, 9), train=dict(epochs=epochs), **settings)
    print(len(list_of_runs), flush=True)
    made = []
    try:
        run_missing(list_of_runs, folder, workers,
                    show=lambda record, n, of: made.append(record.key))
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(made), flush=True)
'''


def program(tmp_path, world, folder, workers=1, epochs=1):
    "A program of its own that makes eight runs."
    script = tmp_path/'program.py'
    script.write_text(PROGRAM)
    words = json.dumps([world, str(folder), workers, epochs])
    return subprocess.Popen([sys.executable, str(script), words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def in_session(leader):
    "Processes of a program's session that are still there."
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != 'Z':
            found.append(int(path.parent.name))
    return found


def test_a_lost_claim_keeps_nobody_elses_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'TOUCH', .01)
    with Claim(tmp_path, 'run') as mine:
        long_ago = time.time()-1000
        os.utime(mine.path, (long_ago, long_ago))
        wait_for(lambda: mine.path.stat().st_mtime > long_ago+1, 10)     # it is touched
        mine.path.write_text(json.dumps(dict(host='other', pid=1, token='theirs')))
        os.utime(mine.path, (long_ago, long_ago))
        time.sleep(.2)
        assert mine.path.stat().st_mtime < long_ago+1
    assert mine.path.exists()


def test_two_programs_on_one_folder(world, tmp_path):
    folder = tmp_path/'results'
    both = [program(tmp_path, world, folder) for _ in range(2)]
    made = []
    for p in both:
        out, err = p.communicate(timeout=600)
        assert p.returncode == 0, err
        made += json.loads(out.splitlines()[-1])
    assert len(made) == len(set(made)) == 8                     # no run twice, none lost
    assert len(read_results(folder)) == 8
    assert not list(folder.glob('.*.claim'))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_killed_without_a_word(world, tmp_path):
    "SIGKILL leaves no worker and no claim that counts; other signals are tested with the program."
    folder = tmp_path/'results'
    p = program(tmp_path, world, folder, 2, epochs=40)
    wait_for(lambda: list(folder.glob('*.json')) or p.poll() is not None)
    p.kill()
    _, err = p.communicate(timeout=60)
    assert p.returncode == -signal.SIGKILL, err
    wait_for(lambda: not in_session(p.pid), 30)                 # no worker is left behind
    done = read_results(folder, pytest.fail)          # what is finished is kept, and whole
    assert 0 < len(done) < 8
    claims = list(folder.glob('.*.claim'))
    assert claims
    for path in claims:                                 # void, since their process is gone
        claim = Claim(folder, path.name[1:].removesuffix('.claim'))
        assert claim.take()
        claim.release()


# ---- on a cluster --------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_cluster_loses_nothing(world, tmp_path, monkeypatch):
    "Two nodes on this machine; one is killed in the middle."
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster
    monkeypatch.setenv('RAY_raylet_start_wait_time_s', '180')
    runs = make_runs(['zero-shot', 'adapter'], seeds=range(1, 9), train=dict(epochs=20), **world)
    serial = run_missing(runs, tmp_path/'serial')
    cluster = Cluster()
    try:
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            second = cluster.add_node(num_cpus=1)
        except Exception as e:       # Ray gives a node's helpers 15 seconds to start
            pytest.skip(f'no cluster on this machine: {e}')
        folder, lost = tmp_path/'cluster', []

        def kill():
            wait_for(lambda: len(list(folder.glob('*.json'))) >= 3)
            cluster.remove_node(second, allow_graceful=False)
            lost.append(len(list(folder.glob('*.json'))))

        thread = threading.Thread(target=kill)
        thread.start()
        made = run_missing(runs, folder, ray=cluster.address)
        thread.join()
        assert lost and lost[0] < len(runs)
        assert numbers(made) == numbers(serial)
        found = sorted(r.key for r in read_results(folder, pytest.fail))
        assert found == sorted(r.key for r in runs)
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()


def test_a_cluster_gets_whole_paths(world, tmp_path, monkeypatch):
    "A worker has another working folder: a folder or file is named from the root on."
    monkeypatch.chdir(Path(world['datasets'][0]).parent)
    given = dict(datasets=['own'], seeds=[1], shots=2, device='cpu', pretrained='clip.safetensors')
    run, = make_runs(['zero-shot'], **given)
    monkeypatch.setattr(bench_runs, '_connect', lambda address: (None, False))
    sent = []

    def send(ray, runs, folder, finished, diverged, options):
        monkeypatch.chdir(tmp_path)
        sent.extend(bench_runs.make(run, **options) for run in runs)

    monkeypatch.setattr(bench_runs, '_send', send)
    named = replace(run, place='of mine', root='own')
    adapter, = make_runs(['adapter'], train=dict(epochs=1), **given)
    for one in (run, named, adapter):
        options = dict(device=None, save='kept')
        bench_runs._on_cluster([one], tmp_path, True, None, None, options)
        monkeypatch.chdir(Path(world['datasets'][0]).parent)
    assert [r.key for r in sent] == [run.key, named.key, adapter.key]
    assert Path('kept', adapter.key).is_dir()


class TaskError(Exception):
    "As Ray hands on the error of a task."
    def __init__(self, cause):
        self.cause = cause


class FakeRay(types.ModuleType):
    "What the bench uses of Ray, in this process: a task is made when somebody asks for it."
    def __init__(self):
        super().__init__('ray')
        self.exceptions = types.SimpleNamespace(RayTaskError=TaskError, RayError=ConnectionError)
        self.connected, self.made, self.cancelled = False, [], []

    def is_initialized(self):
        return self.connected

    def init(self, address, **options):
        self.connected = True

    def shutdown(self):
        self.connected = False

    def cluster_resources(self):
        return dict(CPU=2.)

    def remote(self, **options):
        return lambda function: types.SimpleNamespace(remote=partial(partial, function))

    def wait(self, refs, timeout):
        return refs[-1:], refs[:-1]                             # the last one is ready first

    def get(self, ref):
        self.made.append(ref.args[0].key)
        try:
            return ref()
        except Exception as e:
            raise TaskError(e)

    def cancel(self, ref, force):
        self.cancelled.append(ref.args[0].key)


@pytest.fixture
def fake_ray(monkeypatch):
    module = FakeRay()
    monkeypatch.setitem(sys.modules, 'ray', module)
    return module


def test_runs_of_a_cluster_are_written_and_not_made_again(world, tmp_path, fake_ray):
    "A table on a cluster is that of one process; a second call makes what is lacking."
    table = dict(methods=['adapter'], seeds=[1, 2], train=dict(epochs=1), **world)
    alone = bench(folder=tmp_path/'one', **table)
    folder, shown = tmp_path/'cluster', []
    made = bench(folder=folder, ray=True, show=lambda *row: shown.append(row[1:]), **table)
    assert numbers(made) == numbers(alone) and shown == [(1, 2), (2, 2)]
    assert sorted(r.key for r in read_results(folder, pytest.fail)) == sorted(fake_ray.made)
    assert not list(folder.glob('.*.claim')) and not fake_ray.connected
    files = sorted(folder.glob('*.json'))
    times = [f.stat().st_mtime_ns for f in files]
    assert numbers(bench(folder=folder, ray=True, **table)) == numbers(alone)
    assert len(fake_ray.made) == 2 and [f.stat().st_mtime_ns for f in files] == times
    (folder/f'{alone[0].key}.json').unlink()
    bench(folder=folder, ray=True, **table)
    assert fake_ray.made[2:] == [alone[0].key]


def test_a_run_that_diverges_on_a_cluster_leaves_the_others(world, tmp_path, fake_ray):
    runs = []
    for rate in (.01, .02, 1e6):
        runs += make_runs(['adapter'], seeds=[1], train=dict(epochs=20, lr=rate), **world)
    with pytest.raises(ValueError, match='1 of 3 runs diverged: .*; the other 2 are in'):
        run_missing(runs, tmp_path, ray=True)
    assert fake_ray.made[0] == runs[2].key and len(fake_ray.made) == 3
    assert {r.key for r in read_results(tmp_path)} == {runs[0].key, runs[1].key}
    assert not list(tmp_path.glob('.*.claim')) and not fake_ray.connected


def test_a_cluster_that_loses_a_run_is_one_line(world, tmp_path, fake_ray, monkeypatch):
    "What is under way is cancelled, and its claims are free."
    def lose(ref):
        raise ConnectionError('a node went away')
    monkeypatch.setattr(fake_ray, 'get', lose)
    runs = make_runs(['adapter'], seeds=[1, 2], train=dict(epochs=1), **world)
    with pytest.raises(ValueError, match='ray: a run was lost too often') as error:
        run_missing(runs, tmp_path, ray=True)
    assert '\n' not in str(error.value) and sorted(fake_ray.cancelled) == sorted(r.key for r in runs)
    assert not list(tmp_path.glob('.*.claim')) and not fake_ray.connected


# ---- methods of one's own ------------------------------------------------------------------------

OWN = '''
import torch
from dra_nb.methods.base import Method, register

@register
class Quick(Method):
    "CLIP's logits times a learned number."
    name = 'quick'

    def add(self, generator):
        self.factor = torch.nn.Parameter(torch.ones((), device=self.device))

    @property
    def twice(self):
        return 2*self.factor

    def logits(self, images):
        return SIGN*self.twice*super().logits(images)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module with a method of one's own; a call with another sign is an edit of the file."
    file = tmp_path/'modules'/'quick_of_mine.py'
    file.parent.mkdir()
    monkeypatch.syspath_prepend(str(file.parent))

    def load(sign=''):
        file.write_text(OWN.replace('SIGN*', sign and f'{sign}1*'))
        sys.modules.pop('quick_of_mine', None)
        importlib.invalidate_caches()
        shutil.rmtree(file.parent/'__pycache__', ignore_errors=True)
        return importlib.import_module('quick_of_mine')

    yield load
    METHODS.pop('quick', None)
    sys.modules.pop('quick_of_mine', None)


def test_a_changed_method_is_another_run(world, tmp_path, own):
    "Its source is in the key; the package's own methods have none there."
    table = dict(methods=['quick'], seeds=[1], train=dict(epochs=1), folder=tmp_path/'r', **world)
    own()
    first, = bench(**table)
    own()
    same, = bench(**table, show=lambda *args: pytest.fail('was made again'))
    own('-')
    changed, = bench(**table)
    assert same == first and changed.key != first.key
    assert changed.metrics != first.metrics
    zero, = bench(**dict(table, methods=['zero-shot']))
    assert 'code' in first.run and 'code' not in zero.run


def test_a_page_defines_what_the_package_has():
    "The cell of a page is the package's own class as long as its text is the same."
    module = sys.modules['dra_nb.methods.coop']
    text = inspect.getsource(module.CoOp)
    cell = dict(vars(module), __name__='__main__', register=lambda cls: cls)
    found = []
    for i, body in enumerate([text, text.replace('.02*', '.03*')]):
        file = f'<page {i}>'
        linecache.cache[file] = len(body), None, body.splitlines(True), file
        exec(compile(body, file, 'exec'), cell)
        found.append(code_digest(cell['CoOp']))
    assert found[0] == '' and found[1]


def test_a_method_changed_after_planning_is_refused(world, own):
    own()
    run, = make_runs(['quick'], seeds=[1], train=dict(epochs=1), **world)
    own('-')
    with pytest.raises(ValueError, match='method: the source of quick is .* when the run was pl'):
        bench_runs.make(run)


def test_workers_import_the_module_of_a_method(world, tmp_path, own):
    own()
    table = dict(methods=['quick'], seeds=[1, 2], train=dict(epochs=1), **world)
    alone = bench(folder=tmp_path/'one', **table)
    together = bench(folder=tmp_path/'two', workers=2, **table)
    assert numbers(together) == numbers(alone)


def test_workers_cannot_know_a_method_of_a_function(world, tmp_path):
    class Inside(Method):
        name = 'inside'

    register(Inside)
    try:
        with pytest.raises(ValueError, match="got 'inside'.*cannot import.*workers=1") as error:
            bench(['inside'], seeds=[1, 2], folder=tmp_path, workers=2, **world)
        assert '\n' not in str(error.value)
    finally:
        del METHODS['inside']


# ---- what is refused -----------------------------------------------------------------------------

def test_two_sets_of_one_name_are_refused(world, tmp_path):
    "They would be one set in every table."
    other = tmp_path/'else'/'own'
    for k in range(6):
        save_images(other/f'class {k}', 6, 10*k+3, (20, 20))
    table = {**world, 'datasets': [*world['datasets'], str(other)]}
    with pytest.raises(ValueError, match='got two sets named own, allowed are different names'):
        bench(['zero-shot'], seeds=[1], folder=tmp_path/'out', **table)
    assert not (tmp_path/'out').exists()


def test_a_full_gpu_is_one_line(world, monkeypatch):
    run, = make_runs(['adapter'], seeds=[1], **world)

    def fill(*args, **kwargs):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')

    monkeypatch.setattr(bench_runs, 'train_and_test', fill)
    with pytest.raises(ValueError, match='batch_size=.*--text-chunk .*--workers 1') as error:
        bench_runs.make(run)
    assert '\n' not in str(error.value)


def test_the_digest_of_many_images_takes_few_tasks(monkeypatch):
    "Of a million images too: a task of a pool for every one took gigabytes."
    items = [Item(f'/nowhere/{i:05}.png', i % 2, 'ab'[i % 2]) for i in range(5500)]
    dataset = Dataset(items, items[:3], [], ['a', 'b'], name='many')
    tasks = []

    class Counting(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            tasks.append(args)
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(bench_runs, 'ThreadPoolExecutor', Counting)
    found = dataset_digest(dataset)
    assert len(tasks) < 1200                        # 1,100 files are read for their content
    about = [['a', 'b'], dataset.template, dataset.field_template]
    seen = hashlib.sha256(json.dumps(about).encode())
    for part in dataset[:3]:
        rows = [[o.path.removeprefix('/nowhere/'), o.label] for o in part]
        read = len(part[::max(1, len(part)//1000)])
        seen.update(json.dumps([rows, [-1]*len(part), ['missing']*read]).encode())
    assert found == seen.hexdigest()[:10]
