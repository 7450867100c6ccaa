"The same commands for every method: fit, evaluate, predict and bench agree on what was learned."
import json
import math
import re
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_clip
from PIL import Image

from dra_nb.bench.results import read_results
from dra_nb.bench.runs import best_point, changed_in_all
from dra_nb.cli import main
from dra_nb.data import few_shot_split, load_dataset
from dra_nb.evaluation import accuracy, predictions
from dra_nb.files import read_tensors, write_tensors
from dra_nb.methods import METHODS, build_method, find_method, load_method, method_names
from dra_nb.methods.base import register
from dra_nb.training import fit
from dra_nb.weights import load_clip

COLOURS = ('red', 'green', 'deep_blue', 'grey')
TRAINABLE = [name for name in method_names() if find_method(name)[0].recipe()[1].epochs]


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    "The words that name a glyph-clip with twelve narrow blocks a tower and random weights."
    path = tmp_path_factory.mktemp('clip')/'tiny.safetensors'
    save_tiny_clip(path, words=49408, embed_dim=32, width=32, layers=12, head_width=16, context=32,
                   image_size=32)
    return '--model', 'glyph-clip', '--pretrained', str(path), '--device', 'cpu'


def paint(root, names):
    "Noise, eight pictures a class."
    for k,name in enumerate(names):
        (root/name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(10*k+i).integers(0, 90, (32, 32, 3))
            pixels[..., k % 3] += 150
            Image.fromarray(pixels.astype('uint8')).save(root/name/f'{i}.png')
    return root


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Four classes."
    return paint(tmp_path_factory.mktemp('images')/'colours', COLOURS)


@pytest.fixture
def call(capsys, clip):
    "The program in this process: its standard output; the exit code has to be 0."
    def call(*words):
        capsys.readouterr()
        code = main([*map(str, words), *clip])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out
    return call


def percent(text):
    "The accuracy that evaluate prints."
    return float(re.search(r'([\d.]+) % of', text).group(1))


@pytest.mark.parametrize('name', TRAINABLE)
def test_same_commands(name, call, pictures, tmp_path):
    "Weights of fit score on both halves what bench writes into its record."
    short = '--shots', 2, '--train', 'epochs=1'
    said = call('fit', pictures, '--method', name, '--subset', 'base', '--seed', 1, *short,
                '--out', tmp_path/'w')
    assert find_method(name)[0].name in said and (tmp_path/'w'/'weights.safetensors').exists()
    assert not (tmp_path/'w'/'checkpoint.pt').exists()
    found = {}
    for half in ('base', 'new'):
        found[half] = percent(call('evaluate', pictures, '--subset', half, '--weights',
                                   tmp_path/'w'))
    said = call('bench', '--methods', name, '--datasets', pictures, '--seeds', 1, *short,
                '--out', tmp_path/'r', '--save', tmp_path/'saved', '--workers', 1)
    metrics = re.search(r'base ([\d.]+)  new ([\d.]+)', said)
    assert [float(x) for x in metrics.groups()] == [round(found[h], 1) for h in ('base', 'new')]
    picture = pictures/'grey'/'0.png'
    answers = []
    for weights in (tmp_path/'w', next((tmp_path/'saved').iterdir())):
        answers.append(call('predict', picture, '--weights', weights, '--top', 2))
    assert answers[0] == answers[1] and answers[0].count('%') == 2


def test_on_a_shift_lfa_takes_its_other_matrix_as_bench_does(call, clip, pictures, tmp_path):
    "Other pictures of the trained classes count as untrained, as in its authors' code."
    weights, shift = tmp_path/'weights', paint(tmp_path/'shift', COLOURS)
    call('fit', pictures, '--method', 'lfa', '--shots', 4, '--out', weights)
    model = load_clip('glyph-clip', clip[3], 'cpu')
    method = load_method(weights, model)
    found = {}
    for folder in (pictures, shift):
        data = load_dataset(str(folder))
        seen = method.knows(data.classnames, data.name)
        assert seen == (folder == pictures)
        found[folder] = accuracy(method, data.test, data.classnames, data.template, seen=seen)
        said = call('evaluate', folder, '--weights', weights)
        assert f' {found[folder]:.2f} % ' in said


def test_zero_shot(call, clip, pictures, tmp_path, capsys):
    "It has nothing to fit, and says so; the other commands take it."
    assert main(['fit', str(pictures), '--method', 'zero-shot', '--out', str(tmp_path/'w'),
                 *clip]) == 2
    assert 'nothing to train' in capsys.readouterr().err
    found = percent(call('evaluate', pictures, '--subset', 'new'))
    said = call('bench', '--methods', 'zero-shot', '--datasets', pictures, '--seeds', 1,
                '--shots', 2, '--out', tmp_path/'r', '--workers', 1)
    assert float(re.search(r'new ([\d.]+)', said).group(1)) == round(found, 1)
    said = call('predict', pictures/'grey'/'0.png', '--classes', 'red,grey')
    assert said.count('%') == 2


def test_small_search(call, tmp_path):
    "Six runs of a method on the inner split; the best point is what its table has on top."
    root = paint(tmp_path/'many', [f'colour {letter}' for letter in 'abcdefghijkl'])
    said = call('bench', '--search', tmp_path/'best.json', '--methods', 'tip-adapter', '--datasets',
                root, '--seeds', 1, '--shots', 1, '--out', tmp_path/'r', '--workers', 1)
    assert len(list((tmp_path/'r').glob('*.json'))) == 6
    rows = [line.split('|')[1:-1] for line in said.splitlines() if line.startswith('|')][2:]
    hms = [float(row[2]) for row in rows]
    first = rows[hms.index(max(hms))]
    chosen = json.loads((tmp_path/'best.json').read_text())
    assert list(chosen['tip-adapter'].values()) == [float(x) for x in first[:2]]


@pytest.mark.parametrize('text, said', [('no JSON', 'best.json'), ('[1]', 'allowed is an object'),
                                        (None, 'is no folder')])
def test_file_of_a_search_is_looked_at_before_any_work(capsys, clip, tmp_path, text, said):
    path = tmp_path/'best.json'
    path.write_text(text or '')
    place = path if text else path/'inside.json'
    code = main([*map(str, ['bench', '--search', place, '--methods', 'tip-adapter', '--seeds', 1,
                            '--datasets', 'vehicles', '--out', tmp_path/'r']), *clip])
    err = capsys.readouterr().err
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path/'r').exists() and path.read_text() == (text or '')


def test_methods_of_a_search(capsys, clip, tmp_path, monkeypatch):
    "Without names those of bench that have a search; one without is refused before any work."
    planned = []
    monkeypatch.setattr('dra_nb.bench.runs.run_missing', lambda runs, *more: planned.extend(runs))
    monkeypatch.setattr('dra_nb.commands.bench._show_search', lambda *given: None)
    root = paint(tmp_path/'many', [f'colour {letter}' for letter in 'abcdefghijkl'])
    words = ['bench', '--search', tmp_path/'best.json', '--seeds', 1, '--shots', 1, '--out',
             tmp_path/'r', '--workers', 1, '--datasets']
    assert main([*map(str, [*words, root]), *clip]) == 0, capsys.readouterr().err
    assert {run.method for run in planned} == {'adapter', 'dra-paper', 'dra'}
    capsys.readouterr()
    assert main([*map(str, [*words, 'nowhere', '--methods', 'zero-shot']), *clip]) == 2
    said = "dra-nb: method: got 'zero-shot', which has no search, allowed are adapter, dra, "
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize('cls', METHODS.values(), ids=list(METHODS))
def test_searches_are_equally_large(cls):
    "Six points each, among settings that the method has; the first one is the default's."
    if cls.name == 'zero-shot':
        assert not cls.search
        return
    assert math.prod(map(len, cls.search.values())) == 6 and len(cls.search) == 2
    config, train = cls.recipe(clip='glyph-clip')
    for name,values in cls.search.items():
        part, _, key = name.partition('.')
        known = asdict(train if part == 'train' else config)
        assert known[key] in values and len(set(values)) == len(values)


def test_a_chosen_point_becomes_a_preset(monkeypatch):
    "Of the settings and of the rate; the default stays the published one."
    point = {'train.lr': .02, 'config.words': ''}
    monkeypatch.setattr('dra_nb.recipes._tuned', lambda: {'coop': point})
    coop = METHODS['coop']
    monkeypatch.setattr(coop, 'presets', dict(published=coop.presets['published']))
    register(coop)
    cls, preset = find_method('coop-tuned')
    config, train = cls.recipe(dataset='vehicles', preset=preset)
    assert (config.words, train.lr, train.epochs) == ('', .02, 200)
    config, train = cls.recipe(dataset='vehicles')
    assert (config.words, train.lr) == ('a photo of a', .002)
    assert {'coop-published', 'coop-tuned'} <= set(method_names())


def test_a_search_is_of_one_method(monkeypatch):
    "A method that is derived from another one does not have what was chosen for that one."
    monkeypatch.setattr('dra_nb.recipes._tuned', lambda: {'tip-adapter': {'config.alpha': 3.}})
    parent, derived = METHODS['tip-adapter'], METHODS['tip-adapter-f']
    monkeypatch.setattr(parent, 'presets', parent.presets)
    register(parent)
    assert parent.presets['tuned'].alpha == 3
    monkeypatch.setattr(derived, 'presets', parent.presets)      # as a class inherits them
    register(derived)
    assert 'tuned' not in derived.presets and 'tuned' in parent.presets


def test_tuned_settings_are_what_the_records_say():
    "The packaged file follows from the stored runs by the rule, for every method in it."
    folder = Path(__file__).parent.parent/'nbs'/'results'/'tuned'
    records = read_results(folder) if folder.is_dir() else []
    found = {}
    for method in dict.fromkeys(r.method for r in records):
        own = [r for r in records if r.method == method]
        search = METHODS[method].search
        found[method] = changed_in_all(own, search) | best_point(own, search)
    packaged = json.loads((files('dra_nb')/'assets'/'tuned.json').read_text(encoding='utf-8'))
    assert packaged == found


def test_every_method_is_here():
    assert {find_method(name)[0].name for name in TRAINABLE} == METHODS.keys()-{'zero-shot'}


def test_shots_vote_for_their_own_classes(call, pictures, tmp_path):
    "Tip-Adapter is zero-shot CLIP for other names, even if they are as many."
    call('fit', pictures, '--method', 'tip-adapter', '--shots', 2, '--out', tmp_path/'w')
    weights = '--weights', tmp_path/'w'
    picture = pictures/'red'/'0.png'
    others = 'predict', picture, '--classes', 'one,two,three,four'
    assert call(*others, *weights) == call(*others)
    own = 'predict', picture, '--classes', 'deep_blue,green,grey,red'
    assert call(*own, *weights) == call('predict', picture, *weights) != call(*own)
    names = paint(tmp_path/'others', ('one', 'two', 'three', 'four'))
    assert percent(call('evaluate', names, *weights)) == percent(call('evaluate', names))


@pytest.mark.parametrize('name', [name for name in METHODS if name != 'zero-shot'])
def test_a_sentence_is_read_where_the_method_says_so(name, clip, pictures):
    "Otherwise weights and answers are the same to the bit."
    data = few_shot_split(load_dataset(str(pictures)), 1, 1)
    found = []
    for sentence in ('a photo of a {}.', 'my old {} is here.'):
        method = build_method(name, load_clip('glyph-clip', clip[3], 'cpu'))
        _, train = method.recipe()
        fit(method, data._replace(template=sentence), replace(train, epochs=1), bar=False)
        answers = predictions(method, data.test[:2], data.classnames, sentence, probabilities=True)
        found.append([*method.state().values(), answers])
    assert all(map(torch.equal, *found)) == (not method.reads_template)


CHANGES = dict(epochs=3, batch_size=3, lr=.0123, optimizer='adam', weight_decay=.3,
               warmup_epochs=2, warmup_lr=3e-3)


@pytest.mark.parametrize('name', [name for name, cls in METHODS.items() if cls.not_read])
def test_fields_that_a_method_does_not_read(name, clip, pictures):
    "These and no others leave the weights as they are, to the bit."
    data = few_shot_split(load_dataset(str(pictures)), 2, 1)

    def weights(**changes):
        method = build_method(name, load_clip('glyph-clip', clip[3], 'cpu'))
        _, train = method.recipe()
        recipe = dict(epochs=2, batch_size=4, warmup_epochs=1) | changes
        fit(method, data, replace(train, **recipe), bar=False)
        return [p.detach() for p in method.state().values()]

    first = weights()
    same = {field for field, value in CHANGES.items()
            if all(map(torch.equal, first, weights(**{field: value})))}
    assert same == CHANGES.keys() & set(METHODS[name].not_read)


def test_votes_of_another_form_are_named(call, clip, pictures, tmp_path):
    "A file whose labels are a row, not a table, says which tensor does not fit."
    call('fit', pictures, '--method', 'tip-adapter', '--shots', 2, '--out', tmp_path/'w')
    path = tmp_path/'w'/'weights.safetensors'
    tensors, facts = read_tensors(path)
    write_tensors(path, dict(tensors, values=tensors['values'].amax(1)), facts)
    with pytest.raises(ValueError, match='weights.safetensors: holds (keys|values) of shape'):
        load_method(tmp_path/'w', load_clip('glyph-clip', clip[3], 'cpu'))
