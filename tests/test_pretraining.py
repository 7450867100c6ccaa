"What a notebook cannot show well about pre-training: seeds, times, large batches, falling losses."
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dra_nb import pretraining as P
from dra_nb.data.glyphs import artwork
from dra_nb.weights import GlyphClipConfig, build_glyph_clip, glyph_clip_facts, load_clip

SHAPE = GlyphClipConfig(embed_dim=32, width=32, layers=2, head_width=16)
TINY = P.PretrainConfig(model=SHAPE, words_steps=2, words_batch=16, steps=60, batch=16,
                        warmup=5, words_every=0)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return build_glyph_clip(SHAPE)


def stand_in(folder, config):
    "Targets in place of the sentence encoder's, kept where a run looks for them."
    folder.mkdir(exist_ok=True)
    ids = torch.arange(0, 49408, 5)
    number = len(P.word_texts([], config.seed))+len(ids)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(number, config.model.embed_dim, generator=generator)
    torch.save(dict(targets=F.normalize(y, dim=-1), ids=ids), folder/'targets.pt')
    return folder


class Clock:
    "Two seconds pass whenever it is asked."
    now = 0.

    def __call__(self):
        self.now += 2
        return self.now


def test_minutes_give_steps_that_are_kept_on_resuming(tmp_path):
    "Three steps take two seconds by this clock: nine fit into a tenth of a minute."
    folder = stand_in(tmp_path/'run', TINY)
    first = glyph_clip_facts(P.pretrain(folder, TINY, minutes=.1, clock=Clock()))
    again = glyph_clip_facts(P.pretrain(folder, TINY, minutes=5, clock=Clock()))
    assert first['config']['steps'] == again['config']['steps'] == 9
    assert first['seconds']['pairs'] == again['seconds']['pairs'] == 18


def test_a_second_seed_gives_another_file(tmp_path):
    short = replace(TINY, steps=2)
    files = []
    for seed in (1, 2):
        folder = stand_in(tmp_path/str(seed), replace(short, seed=seed))
        files.append(P.pretrain(folder, replace(short, seed=seed)))
    one, two = (load_clip('glyph-clip', str(p), 'cpu').state_dict() for p in files)
    assert not torch.equal(one['visual.conv1.weight'], two['visual.conv1.weight'])


def test_seeds_and_steps_share_no_pictures(model):
    seen = []
    for seed in (1, 2):
        batches = P.PairBatches(replace(TINY, seed=seed), model.tokenizer)
        for step in (0, 1):
            seen += [image.numpy().tobytes() for image in batches[step].images]
    assert len(set(seen)) == len(seen) == 4*TINY.batch


def test_batches_are_the_same_from_other_processes(model):
    batches = P.PairBatches(TINY, model.tokenizer)
    for here, there in zip((batches[3], batches[4]), P.batches_from(batches, 3, 5, workers=1)):
        for one, two in zip(here, there):
            assert torch.equal(one, two)


def test_loss_falls(monkeypatch):
    "Sixteen flags in their own colours, eighty steps: well below what guessing gives, ln 16."
    flags = {c['classname'] for c in artwork().classes if c['dataset'] == 'flags'}
    some = [c for c in P.emoji_concepts() if c.name in flags][:64:4]
    monkeypatch.setattr(P, 'emoji_concepts', lambda: some)
    torch.manual_seed(0)
    c = replace(TINY, model=replace(SHAPE, layers=1), steps=80, patch_dropout=0., text_lr=1.,
                lr=1e-3, recolour=0., outline=0., grey=0., per_name=1)
    model = build_glyph_clip(c.model)
    batches, both, losses = P.PairBatches(c, model.tokenizer), P.optimizers(model, c), []
    for step in range(c.steps):
        loss, _ = P.pair_loss(model, batches[step], 'cpu')
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in both:
            optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:])/10 < .9*math.log(c.batch), losses


def test_guessing_costs_the_logarithm_of_what_is_left():
    "Six pictures of three texts, two of a kind: who guesses chooses among those that count."
    own, kind = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0])
    rows, columns = torch.tensor([2., 2, 3, 3, 2, 2]), torch.tensor([3., 3, 5, 5, 3, 3])
    expected = (rows.log().mean()+columns.log().mean())/2
    assert_close(P.contrast(torch.zeros(6, 3), own, kind), expected, rtol=1e-5, atol=0)


def test_muon_is_torchs_but_for_its_precision():
    torch.manual_seed(0)
    weights, gradients = torch.randn(24, 60), [torch.randn(24, 60) for _ in range(5)]
    both = []
    for kind, more in ((P.Muon, {}), (torch.optim.Muon, dict(adjust_lr_fn='match_rms_adamw'))):
        p = torch.nn.Parameter(weights.clone())
        optimizer = kind([p], lr=1e-2, momentum=.95, weight_decay=.1, **more)
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        both.append(p.detach()-weights)
    assert F.cosine_similarity(both[0].flatten(), both[1].flatten(), dim=0) > .99
    assert .97 < both[0].norm()/both[1].norm() < 1.03


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, model):
    stage = P.Stage('pairs', build_glyph_clip(SHAPE), TINY, 20, tmp_path)

    def losses(batch, step):
        return stage.model.logit_scale*math.nan, {}

    with pytest.raises(ValueError, match='pairs: the loss is nan at step 20'):
        stage.run(range(20), losses)


def broken_loss(model):
    return model.logit_scale*math.nan


def broken_gradient(model):
    "Zero; its gradient is 0/0."
    return (model.logit_scale-model.logit_scale.detach()).square().sqrt()


@pytest.mark.parametrize('broken, said', [(broken_loss, 'the loss is nan'),
                                          (broken_gradient, 'the weights are no numbers')])
@pytest.mark.parametrize('every', [1, 100])
def test_a_good_checkpoint_stays(broken, said, every, tmp_path):
    "Whether one is due, or a signal asks for it; the run then goes on from the good one."
    config, model = replace(TINY, every=every), build_glyph_clip(SHAPE)
    stage = P.Stage('pairs', model, config, 20, tmp_path)

    def losses(batch, step):
        if step == 2:
            if every > 2:
                signal.raise_signal(signal.SIGTERM)
            return broken(model), {}
        return model.logit_scale**2, {}

    if every > 2:
        stage.step = 2
        stage.save()
        first = range(2, 20)
    else:
        first = range(20)
    with pytest.raises(ValueError, match=f'pairs: {said} at step 3; the last checkpoint is'):
        stage.run(first, losses)
    again = P.Stage('pairs', build_glyph_clip(SHAPE), config, 20, tmp_path)
    assert again.step == 2
    assert all(p.isfinite().all() for p in again.model.parameters())
    again.run(range(2, 20), lambda batch, step: (again.model.logit_scale**2, {}))
    assert again.step == 20


def test_a_step_costs_more_in_the_decay(model):
    "It shows more patches; what a file tells is a mean over the run."
    pairs = P.PairBatches(replace(TINY, batch=8), model.tokenizer)
    costs = [P.flops_of_step(model, pairs[step])/8 for step in (0, TINY.steps-1)]
    assert costs[0] < P.flops_per_pair(model, pairs) < costs[1]


LONG = replace(TINY, steps=100_000)
PROGRAM = """
import os, sys
from dra_nb import pretraining as P
from dra_nb.weights import GlyphClipConfig

def show(stage, record):
    children = open(f'/proc/self/task/{os.getpid()}/children').read()
    print(stage, record['step'], children, flush=True)

c = P.PretrainConfig(model=GlyphClipConfig(32, 32, 2, 16), words_steps=2, words_batch=16,
                     steps=100_000, batch=16, warmup=5, words_every=0)
try:
    P.pretrain(sys.argv[1], c, log=show, workers=1)
except P.Stopped as e:
    print(e, flush=True)
    sys.exit(e.number)
"""


@pytest.fixture
def long_run(tmp_path):
    "A run of 100,000 steps in a process group of its own, its folder, and its workers."
    folder = stand_in(tmp_path/'run', LONG)
    words = [sys.executable, '-c', PROGRAM, str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    workers = []
    for line in process.stdout:
        if line.startswith('pairs'):
            workers = [int(word) for word in line.split()[2:]]
            break
    yield folder, process, workers
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def is_running(pid):
    "Is there such a process, other than one that nobody has waited for yet?"
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return False
    return state != 'Z'


def end_of(workers, seconds=60):
    "Wait for workers to end; those that did not."
    for _ in range(10*seconds):
        if not any(map(is_running, workers)):
            break
        time.sleep(.1)
    return list(filter(is_running, workers))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ended_with_all_its_processes(long_run, number):
    "Ctrl-C reaches the workers, too; the run still writes a checkpoint, and goes on from there."
    folder, process, workers = long_run
    assert workers
    os.killpg(process.pid, number)
    said, err = process.communicate(timeout=300)
    assert process.returncode == number and 'goes on from' in said, err
    assert end_of(workers) == []
    kept = torch.load(folder/'pairs.pt', weights_only=True)
    assert kept['step'] >= 20 and kept['steps'] == 100_000
    with pytest.raises(ValueError, match='pairs: got .* steps, allowed is 100000: '):
        P.pretrain(folder, replace(LONG, steps=kept['step']+1))
    steps = 4*kept['step']//3+1                          # its decay begins where the run stands
    again = P.pretrain(folder, replace(LONG, steps=steps))
    assert glyph_clip_facts(again)['config']['steps'] == steps


def test_workers_end_with_a_run_that_is_killed(long_run):
    _, process, workers = long_run
    assert workers
    process.kill()
    process.wait(timeout=60)
    assert end_of(workers) == []


def test_a_torn_checkpoint_is_one_line(tmp_path):
    folder = stand_in(tmp_path/'run', TINY)
    (folder/'words.pt').write_bytes(b'PK torn')
    with pytest.raises(ValueError, match='words.pt: cannot be read as a checkpoint') as error:
        P.pretrain(folder, TINY)
    assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def corpus_script():
    pytest.importorskip('resvg')
    path = Path(__file__).parents[1]/'scripts/icons/build_corpus.py'
    spec = importlib.util.spec_from_file_location('build_corpus', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                     # where worker processes look for it
    spec.loader.exec_module(module)
    return module


ICONS = {
    'chat-square-quote-broken': 'chat square quote', 'traffic-light': 'traffic light',
    'bell-bold-duotone': 'bell', 'heart-plus-sharp': 'heart plus', 'apple-2': 'apple',
    'add-20-regular': 'add', 'bold': 'bold', 'crown3': 'crown', 'star-two-tone': 'star'}


@pytest.mark.parametrize('icon,name', ICONS.items())
def test_names_without_style(corpus_script, icon, name):
    in_set = {*ICONS, 'heart-plus', 'bell-bold', 'bell', 'add-20', 'add', 'add-bold'}
    assert corpus_script.plain_name(icon, 'any', in_set) == name


def test_held_out_names(corpus_script):
    theirs = corpus_script.HeldOut(['red apple', 'Rocket'])
    for name in ('rocket', 'rockets', 'small rocket off', 'big red apple'):
        assert theirs(name)
    for name in ('rocketry', 'apple', 'apple red', 'red'):
        assert not theirs(name)


def small_archive(folder, module):
    "A package with three sets, one of which may not be used."
    body = '<path fill="currentColor" d="M{} 4h12v9H{}z"/>'
    icons = {f'thing-{word}': dict(body=body.format(k, k))
             for k, word in enumerate(('one-outline', 'lamp', 'sofa-bold', 'brand'))}
    about = dict(name='A', author=dict(name='N. N.', url='none'), palette=False)
    facts = {'good': dict(about, license=dict(spdx='MIT')),
             'coloured': dict(about, license=dict(spdx='CC0-1.0'), palette=True),
             'shared': dict(about, license=dict(spdx='CC-BY-SA-4.0'))}
    files = {'collections.json': facts}
    for prefix in facts:
        files[f'json/{prefix}.json'] = dict(prefix=prefix, icons=icons, width=24, height=24)
    path = folder/f'iconify-json-{module.VERSION}.tgz'
    with tarfile.open(path, 'w:gz') as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f'package/{name}')
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_two_builds_give_the_same_bytes(corpus_script, tmp_path, monkeypatch):
    archive = small_archive(tmp_path, corpus_script)
    monkeypatch.setattr(corpus_script, 'fetch', lambda folder: archive)
    built = []
    for name, workers in (('a', 1), ('b', 2)):
        corpus_script.build(tmp_path/name, tmp_path/name, workers=workers)
        files = ('planes.npy', 'icons.json', 'sets.json')
        built.append([(tmp_path/name/f).read_bytes() for f in files])
    assert built[0] == built[1]
    facts = json.loads(built[0][2])
    assert [s['set'] for s in facts['sets']] == ['good', 'coloured']
    assert facts['sets_left_out'] == {'shared': 'licence: share-alike'}
    icons = P.Icons(tmp_path/'a')
    assert icons.pixels(0)[1] and not icons.pixels(len(icons.rows)-1)[1]


def test_another_archive_is_refused(corpus_script, tmp_path):
    (tmp_path/f'iconify-json-{corpus_script.VERSION}.tgz').write_bytes(b'other')
    with pytest.raises(SystemExit, match='allowed SHA-512'):
        corpus_script.fetch(tmp_path)
