"The methods against numbers of their authors' code; `official.py` tells how."
import fnmatch
import json
from pathlib import Path

import numpy as np
import pytest

from dra_nb.clip import tokenize
from official import CASES, Deviation, OfficialFile, Steps, check_file, main, tiny_clip

FILES = sorted((Path(__file__).parent/'fixtures'/'official').glob('*.npz'))
# file → what is compared with nothing, and why; of all other files everything is compared
LEFT_OUT = {
    'cliplora': {
        'dropout_rate0/grad/*resblocks.0.*': 'a path of the official code that gets them wrong'},
    'lfa': {'f64/synth/*': 'of features in float64, which the file does not hold'},
    'proda': {'loss_expected_mc_*': 'drawn by chance, to show that the loss is a bound'},
}
KNOWN = [f for f in FILES if f.stem.partition('_')[0] in CASES]


@pytest.mark.parametrize('path', KNOWN, ids=lambda path: path.stem)
def test_file(path):
    "Every quantity is compared, or is here with the reason."
    lines, left = check_file(path)
    assert lines
    expected = LEFT_OUT.get(path.stem, {})
    assert {pattern_of(key, expected) for key in left} == set(expected)


def pattern_of(key, patterns):
    "The first pattern that a key has; the key itself if none."
    return next((p for p in patterns if fnmatch.fnmatchcase(key, p)), key)


def changed(path, target, key, factor):
    "A copy of a file in which one array is a little larger."
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[key] = arrays[key]*np.float32(factor)
    np.savez_compressed(target, **arrays)
    return target


@pytest.mark.parametrize('key', ['logits', 'text_features_raw', 'loss_ce', 'loss_history',
                                 'grad/prompt_learner.ctx', 'step3/prompt_learner.ctx'])
def test_a_deviation_is_seen(key, tmp_path):
    path = changed(FILES[0].parent/'coop.npz', tmp_path/'other.npz', key, 1.001)
    with pytest.raises(Deviation, match=key):
        check_file(path)


def test_the_command_says_so(tmp_path, capsys):
    path = changed(FILES[0].parent/'coop.npz', tmp_path/'other.npz', 'logits', 1.001)
    assert main([str(path)]) == 1
    assert 'coop: logits deviates by' in capsys.readouterr().out
    assert main([]) == 2


def test_other_seeds_names_and_sizes(tmp_path):
    "A file of the same form with three other classes, five other images and another CLIP."
    with np.load(FILES[0].parent/'coop.npz') as stored:
        arrays = dict(stored)
    meta = json.loads(str(arrays['meta']))
    names = ['snow leopard', 'zip', 'left_right arrow']
    labels = [2, 0, 0, 1, 2]
    meta.update(classnames=names, labels=labels, clip_seed=4, image_seed=9, n_images=5)
    for key in ('step3/prompt_learner.ctx', 'loss_history', 'step3_logits'):
        del arrays[key]
    clip = tiny_clip(4)
    arrays['tokens'] = tokenize(clip, names, 'a photo of a {}.').numpy()
    arrays['labels'] = np.array(labels)
    arrays['meta'] = np.array(json.dumps(meta))
    path = tmp_path/'anything.npz'
    np.savez(path, **arrays)
    file = OfficialFile(path)
    case = CASES['coop'](file)
    method = case.build()
    arrays['zero_shot_logits'] = case.zero_shot_logits().numpy()
    loss = sum(method.losses(file.images, file.labels).values())
    for name,g in case.gradients(method, loss).items():
        arrays[f'grad/{name}'] = g.numpy()
    for key,value in case.values(method).items():
        arrays[key] = value.detach().numpy()
    np.savez(path, **arrays)
    assert check_file(path)[1] == []


def without(path, target, *keys):
    "A copy of a file that lacks some arrays."
    with np.load(path) as stored:
        arrays = {key: value for key,value in stored.items() if key not in keys}
    np.savez_compressed(target, **arrays)
    return target


@pytest.mark.parametrize('key', ['logits', 'loss_ce', 'loss_total', 'tokens', 'loss_history',
                                 'meta', 'zero_shot_logits', 'step3_logits', 'text_features',
                                 'param/prompt_learner.ctx', 'grad/prompt_learner.ctx',
                                 'step3/prompt_learner.ctx'])
def test_a_file_that_lacks_something_does_not_pass(key, tmp_path, capsys):
    path = without(FILES[0].parent/'coop.npz', tmp_path/'other.npz', key)
    assert main([str(path)]) == 1
    said, = capsys.readouterr().out.splitlines()
    assert said.startswith(str(path)) and key.removeprefix('grad/').removeprefix('step3/') in said


def with_array(path, target, key, change, **meta):
    "A copy of a file in which one array is another, and so are some settings."
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[key] = change(arrays[key].copy())
    settings = json.loads(str(arrays['meta'])) | meta
    arrays['meta'] = np.array(json.dumps(settings))
    np.savez_compressed(target, **arrays)
    return target


def with_entry(where, value):
    "A change of one entry of an array."
    def change(array):
        array[where] = value
        return array
    return change


WRONG = [
    ('coop', 'logits', with_entry((0, 0), np.nan), 'logits holds numbers that are not finite'),
    ('coop', 'param/prompt_learner.ctx', with_entry((3, 5), np.inf), 'that are not finite'),
    ('coop', 'param/prompt_learner.ctx', lambda a: a[:3], 'has shape (3, 64), allowed is (4, 64)'),
    ('coop', 'logits', lambda a: a[:, :6], 'logits deviates'),
    ('coop', 'labels', with_entry(0, 1), 'labels and the labels of meta differ'),
    ('coop', 'tokens', with_entry((2, 3), 343), 'tokens deviates'),     # a word in a slot
    ('coop', 'tokens', with_entry((2, 76), 1), 'tokens deviates'),
    ('coop', 'tokens', lambda a: a[:6], 'tokens deviates'),
    ('coop', 'tokens', lambda a: a[:, :30], 'tokens holds no rows of 77 ids'),
    ('coop', 'tokens', lambda a: a + .4, 'tokens holds no rows of 77 ids'),
    ('tcp', 'guide_tokens', with_entry((0, 70), 7), 'guide_tokens deviates'),
    ('tcp', 'f64/grad_norm_sum', with_entry((1, 1), np.nan), 'f64/grad_norm_sum holds'),
    ('tcp', 'f64/grad_norm_sum', lambda a: a[:4], 'f64/grad_norm_sum has shape (4, 2)'),
    ('maple', 'grad_summary/prompt_learner.compound_prompt_projections.0.weight',
     lambda a: a[:2], 'has shape (2,), allowed is (34,)'),
    ('lfa', 'clip/procrustes_beta0.9', with_entry((0, 0), 2.), 'procrustes_beta0.9 deviates'),
    ('lfa', 'clip/visual_features', with_entry((0, 0), np.nan), 'clip/visual_features holds'),
]


@pytest.mark.parametrize('name, key, change, said', WRONG)
def test_a_wrong_array_is_named(name, key, change, said, tmp_path, capsys):
    path = with_array(FILES[0].parent/f'{name}.npz', tmp_path/'other.npz', key, change)
    assert main([str(path)]) == 1
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith(str(path)) and said in line


def test_a_key_of_one_setting_is_not_that_of_another(tmp_path):
    "What is compared behind one setting says nothing of the same name behind another."
    path = with_array(FILES[0].parent/'tcp.npz', tmp_path/'other.npz', 'labels', np.asarray)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays['adam_eps1e-3/more'] = arrays['param/more'] = np.ones(3)
    np.savez_compressed(path, **arrays)
    assert check_file(path)[1] == ['adam_eps1e-3/more', 'param/more']


def test_a_context_for_every_class(tmp_path):
    "The same vectors for every class give the file's logits; their gradients add up to the file's."
    def tiled(context):
        return np.tile(context, (7, 1, 1))
    path = with_array(FILES[0].parent/'coop.npz', tmp_path/'other.npz', 'param/prompt_learner.ctx',
                      tiled, parameters_official_order=[['prompt_learner.ctx', [7, 4, 64]]])
    file = OfficialFile(path)
    case = CASES['coop'](file)
    method = case.build()
    logits = method.logits(file.images).detach().numpy()
    assert np.allclose(logits, file.arrays['logits'], atol=1e-4)
    loss = sum(method.losses(file.images, file.labels).values())
    gradient = case.gradients(method, loss)['prompt_learner.ctx']
    wanted = file.arrays['grad/prompt_learner.ctx']
    assert gradient.shape == (7, 4, 64)
    assert np.allclose(gradient.sum(0).numpy(), wanted, atol=1e-4*abs(wanted).max())


def test_a_term_of_weight_0_is_compared(tmp_path):
    "The guide's term is in the file whatever its weight is."
    path = with_array(FILES[0].parent/'kgcoop.npz', tmp_path/'other.npz', 'labels', np.asarray,
                      weight=0)
    case = CASES['kgcoop'](OfficialFile(path))
    method = case.build()
    found = case.values(method)
    assert np.isclose(float(found['loss_kg']), float(case.arrays['loss_kg']), rtol=1e-4)
    assert float(found['loss_total']) == float(found['loss_ce'])


@pytest.mark.parametrize('change', [dict(nesterov=True), dict(dampening=.5)])
def test_settings_of_the_optimiser_are_those_of_the_file(change):
    file = OfficialFile(FILES[0].parent/'coop.npz')
    file.meta['optimizer'].update(change)
    case = CASES['coop'](file)
    method = case.build()
    trainer = Steps(method, case.recipe()[0], case.optimiser_settings())
    group, = trainer.optimizer.param_groups
    assert change.items() <= group.items()


def test_what_is_no_file_of_numbers_is_named(tmp_path, capsys):
    text, part = tmp_path/'text.npz', tmp_path/'part.npz'
    text.write_text('numbers')
    part.write_bytes((FILES[0].parent/'coop.npz').read_bytes()[:5000])
    for path in (text, part, tmp_path/'none.npz'):
        assert main([str(path)]) == 1
        said, = capsys.readouterr().out.splitlines()
        assert said.startswith(f'{path}: no file of official numbers')


def test_the_table(capsys):
    "A line a file, the largest error of every quantity in it."
    assert main(['--table', str(FILES[0].parent/'coop.npz')]) == 0
    head, _, row = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    found = dict(zip([word.strip() for word in head], [word.strip() for word in row]))
    assert found['method'] == 'coop' and int(found['numbers']) > 10
    assert 0 < float(found['gradients']) < 1e-4 and 0 < float(found['logits']) < 1e-4


def test_the_errors_on_file():
    "What the page of methods shows is of these files, and within what they allow."
    path = Path(__file__).parent.parent/'nbs'/'results'/'official.json'
    found = {row['file']: row for row in json.loads(path.read_text(encoding='utf-8'))}
    assert set(found) == {f.stem for f in KNOWN}
    for row in found.values():
        assert row['quantities'] > 10 and 0 < row['errors']['logits'] < 5e-5
        assert 0 < row['errors']['gradients'] < 1e-4


def test_as_json(capsys):
    assert main(['--json', str(FILES[0].parent/'coop.npz')]) == 0
    row, = json.loads(capsys.readouterr().out)
    assert row['file'] == 'coop' and 0 < row['errors']['gradients'] < 1e-4


def test_context_words_are_those_of_the_file(tmp_path, capsys):
    "The words behind MaPLe's first prompt stay in the sentence."
    with np.load(FILES[0].parent/'maple.npz') as stored:
        arrays = dict(stored)
    meta = json.loads(str(arrays['meta']))
    meta['context_words'] = 'a photo of one'
    arrays['meta'] = np.array(json.dumps(meta))
    path = tmp_path/'other.npz'
    np.savez_compressed(path, **arrays)
    assert main([str(path)]) == 1
    assert 'tokens deviates' in capsys.readouterr().out


def test_sentences_in_another_order(tmp_path):
    "ProDA's names stand where the file says: here sentences with the name at the end come first."
    path = FILES[0].parent/'proda.npz'
    order = [4, 1, 7, 0, 2, 6, 3, 5]
    with np.load(path) as stored:
        arrays = dict(stored)
    meta = json.loads(str(arrays['meta']))
    meta['positions'] = [meta['positions'][k] for k in order]
    meta['prompt_batch'] = [order.index(k) for k in meta['prompt_batch']]
    arrays['meta'] = np.array(json.dumps(meta))
    del arrays['steps_diag_K+1/step3_delta_summary/ctx']        # its first numbers are others
    for key,value in arrays.items():
        name = key.rpartition('/')[2]
        axis = 1 if name.startswith('text_features') else 0
        of_sentences = name.startswith(('text_features', 'plain_features')) or name == 'ctx'
        if of_sentences and value.shape[axis] == len(order):
            arrays[key] = np.take(value, order, axis)
    other = tmp_path/'other.npz'
    np.savez_compressed(other, **arrays)
    assert check_file(other)[0]


def permuted(path, target, order):
    "The file as it would be with its classes in another order."
    with np.load(path) as stored:
        arrays = dict(stored)
    meta = json.loads(str(arrays['meta']))
    C, place = len(order), np.argsort(order)
    for key,value in arrays.items():
        name = key.rpartition('/')[2]
        if name.startswith('class_split') or name == 'labels' and len(value) == meta['n_images']:
            arrays[key] = place[value]                # numbers of classes
        elif C in value.shape:                        # no other axis of the files is as long
            arrays[key] = np.take(value, order, axis=value.shape.index(C))
    meta['classnames'] = [meta['classnames'][k] for k in order]
    if 'labels' in meta:
        meta['labels'] = [int(place[label]) for label in meta['labels']]
    arrays['meta'] = np.array(json.dumps(meta))
    np.savez_compressed(target, **arrays)
    return target


@pytest.mark.parametrize('path', KNOWN, ids=lambda path: path.stem)
def test_classes_in_another_order(path, tmp_path):
    "Losses, gradients and steps do not know the order; logits and text features move with it."
    other = permuted(path, tmp_path/'other.npz', [3, 0, 6, 5, 1, 2, 4])
    _, left = check_file(other)
    expected = LEFT_OUT.get(path.stem, {})
    assert {pattern_of(key, expected) for key in left} == set(expected)
