"The methods against numbers of their authors' code; `official.py` tells how."
import fnmatch
import json
from pathlib import Path

import numpy as np
import pytest

from dra_nb.clip import tokenize
from official import CASES, Deviation, OfficialFile, check_file, main, tiny_clip

FILES = sorted((Path(__file__).parent/'fixtures'/'official').glob('*.npz'))
SUMMARY = 'norm, sum and first numbers of an array that is compared in full'
SUMMED = 'norms and sums of the float64 run; the arrays are compared in single precision'
GIVEN = 'an input of the comparison'

# file → what is compared with nothing, and why; of all other files everything is compared
LEFT_OUT = {
    'cliplora': {
        'dropout_rate0/*': 'another path of the official code, whose gradients it gets wrong',
        'f64/dropout_rate0/loss': 'the same',
        'f64/step3_logits_merged': 'f64/step3_logits to rounding, which is compared'},
    'lfa': {
        '*/labels': GIVEN,
        '*/W': GIVEN,
        '*/projector_left': GIVEN,
        '*/projector_right': 'the other side of projector_left; one decides',
        '*/singular_values': 'of the input; the closed form is compared',
        '*/distances_at_W': 'inside the loss, which is compared with its gradient',
        '*/n100/step3_delta_summary': SUMMARY,
        'f64/*': 'the same formulas in float64, compared in single precision alone'},
    'metaprompt': {
        'n_trained': 'a number of the official model; ours is in the contract',
        'episode/class_split_*': GIVEN,
        'episode/first_half_size': GIVEN,
        'zero_shot_tokens': 'their features are compared',
        'plain3/step3_delta_summary/*': SUMMARY,
        'episode/*/losses_iter1': 'losses inside an episode; the parameters after it are compared',
        'episode/*/text_trace_iter1': 'parameters inside an episode; those after it are compared',
        'episode/unshared_torch*/meta_grad1': 'episode/meta_grad1, which is compared',
        'f64/episode/*/losses_iter1': 'as in single precision',
        'f64/*_norm_sum': SUMMED},
    'proda': {
        'name_lens': 'what the official code needs to cut sentences; ours are compared as tokens',
        'loss_expected_mc_*': 'drawn by chance, to show that the loss is a bound',
        'steps_diag_K+1/step3_delta_summary/ctx': SUMMARY,
        'f64/*_norm_sum': SUMMED},
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


@pytest.mark.parametrize('key', ['logits', 'loss_total', 'tokens', 'loss_history', 'meta',
                                 'param/prompt_learner.ctx', 'grad/prompt_learner.ctx'])
def test_a_file_that_lacks_something_does_not_pass(key, tmp_path, capsys):
    path = without(FILES[0].parent/'coop.npz', tmp_path/'other.npz', key)
    assert main([str(path)]) == 1
    said, = capsys.readouterr().out.splitlines()
    assert said.startswith(str(path)) and key.removeprefix('grad/') in said


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
