"""Do our methods compute what their authors' code computes?

    python tests/official.py FILE.npz …
    python tests/official.py --table FILE.npz …
    python tests/official.py --json FILE.npz …

The second form prints the largest relative error of every method and quantity as a table, the third
as JSON for a page: nbs/results/official.json is what it says of tests/fixtures/official/*.npz.

A file holds numbers of one method on a tiny CLIP whose weights a frozen generator draws. The method
is built here with the file's settings and parameters, and everything in the file is computed again:
logits, features, loss terms, gradients, parameters after three steps. One line for a group of
quantities; the first deviation beyond the file's tolerance ends the run with exit code 1.

A method takes part through a `Case`: which settings, which of its parameters has which official name.
"""
import json
import math
import re
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from torch.nn import functional as F

from dra_nb.attach import attached
from dra_nb.clip import image_features, text_features, tokenize
from dra_nb.methods import METHODS, promptsrc
from dra_nb.methods.lfa import start_matrix
from dra_nb.methods.proda import difference_variance
from dra_nb.methods.promptsrc import epoch_weights
from dra_nb.prompts import encode_text
from dra_nb.recipes import TrainConfig, make_optimizer

# ---- the tiny CLIP ------------------------------------------------------------------------------

JOINT, IMAGE, PATCH, BLOCKS = 64, 32, 8, 12
WIDTHS = {'visual.': 128, '': 64}             # image tower, text tower; a head is 64 wide
CONTEXT, VOCABULARY = 77, 49408
TOKENIZER = open_clip.get_tokenizer('ViT-B-16')


def tower_shapes(prefix, width):
    "Names and shapes of a tower's blocks, as OpenAI's weights have them."
    shapes = {}
    for i in range(BLOCKS):
        block = f'{prefix}transformer.resblocks.{i}.'
        layers = {'attn.in_proj_': (3*width, width), 'attn.out_proj.': (width, width),
                  'mlp.c_fc.': (4*width, width), 'mlp.c_proj.': (width, 4*width)}
        for layer,shape in layers.items():
            shapes[f'{block}{layer}weight'] = shape
            shapes[f'{block}{layer}bias'] = shape[:1]
        for norm in ('ln_1', 'ln_2'):
            shapes[f'{block}{norm}.weight'] = shapes[f'{block}{norm}.bias'] = (width,)
    return shapes


def weight_shapes():
    "Names and shapes of all weights."
    image, text = WIDTHS['visual.'], WIDTHS['']
    shapes = {
        'logit_scale': (), 'positional_embedding': (CONTEXT, text),
        'text_projection': (text, JOINT), 'token_embedding.weight': (VOCABULARY, text),
        'visual.class_embedding': (image,),
        'visual.positional_embedding': ((IMAGE//PATCH)**2 + 1, image), 'visual.proj': (image, JOINT),
        'visual.conv1.weight': (image, 3, PATCH, PATCH)}
    for norm,width in (('ln_final', text), ('visual.ln_pre', image), ('visual.ln_post', image)):
        shapes[f'{norm}.weight'] = shapes[f'{norm}.bias'] = (width,)
    for prefix,width in WIDTHS.items():
        shapes.update(tower_shapes(prefix, width))
    return shapes


def spread(name, shape, draw):
    "A weight from standard normal numbers: its scale depends on what it is."
    is_norm = re.search(r'(^|\.)ln_', name) is not None
    if name.endswith('bias'):
        return draw*(.1 if is_norm else .05)
    if is_norm:
        return 1 + .1*draw
    if 'positional' in name:
        return .1*draw
    if 'embedding' in name:
        return .3*draw
    inputs = shape[0] if name in ('text_projection', 'visual.proj') else math.prod(shape[1:])
    return draw/math.sqrt(inputs)


def tiny_weights(seed):
    "Name → float32 tensor, drawn in the order of the sorted names; the temperature is CLIP's 1/100."
    source = np.random.RandomState(seed)
    weights = {}
    for name,shape in sorted(weight_shapes().items()):
        if name == 'logit_scale':
            weights[name] = torch.tensor(math.log(100.))
            continue
        value = spread(name, shape, source.standard_normal(shape))
        weights[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return weights


def tiny_clip(seed=0):
    "The tiny CLIP as a model of open_clip, with what `load_clip` adds."
    image = dict(image_size=IMAGE, layers=BLOCKS, width=WIDTHS['visual.'], patch_size=PATCH)
    text = dict(context_length=CONTEXT, vocab_size=VOCABULARY, width=WIDTHS[''], heads=1,
                layers=BLOCKS)
    model = open_clip.CLIP(JOINT, image, text, quick_gelu=True).eval()
    wrong = model.load_state_dict(tiny_weights(seed), strict=False)
    assert not wrong.unexpected_keys and set(wrong.missing_keys) <= {'attn_mask'}, wrong
    model.tokenizer = TOKENIZER
    model.image_size, model.mean, model.std = IMAGE, (.5,)*3, (.25,)*3
    model.clip_name, model.preprocess = 'tiny', None
    return model


def word_ids(words):
    "The ids of words, without start and end."
    return TOKENIZER.encode(words)


def tiny_images(n, seed):
    "n normalised images (n,3,S,S) of noise."
    noise = np.random.RandomState(seed).standard_normal((n, 3, IMAGE, IMAGE))
    return torch.from_numpy(noise.astype(np.float32))


# ---- a file -------------------------------------------------------------------------------------

class Deviation(Exception):
    "A quantity lies outside its tolerance."


# What the first part of a key begins with, if it is no setting such as 's0.5/'.
KINDS = ('param', 'grad', 'plain_grad', 'step3', 'f64')


class OfficialFile:
    "The numbers of one method, and the settings they were made with."
    def __init__(self, path):
        with np.load(path, allow_pickle=False) as stored:
            self.arrays = {key: stored[key] for key in stored.files if key != 'meta'}
            self.meta = json.loads(str(stored['meta']))
        self.path = str(path)
        self.method = self.meta['method']
        self.classnames = self.meta['classnames']
        self.check_finite()
        self.labels = self.read_labels()
        self.images = tiny_images(self.meta['n_images'], self.meta['image_seed'])
        self.tolerance = self.read_tolerance(self.meta['tolerance'])

    def check_finite(self):
        "A NaN compares with nothing."
        for key,value in self.arrays.items():
            if not np.isfinite(value).all():
                raise Deviation(f'{self.method}: {key} holds numbers that are not finite')

    def read_labels(self):
        "The labels of the arrays, or else of `meta`; where both have them they are the same."
        noted = self.meta.get('labels')
        labels = np.asarray(self.arrays.pop('labels', noted))
        if noted is not None and labels.tolist() != list(noted):
            raise Deviation(f'{self.method}: labels and the labels of meta differ')
        if labels.shape != (self.meta['n_images'],):
            raise Deviation(f'{self.method}: labels has shape {labels.shape}, '
                            f'allowed is ({self.meta["n_images"]},)')
        if labels.min() < 0 or labels.max() >= len(self.classnames):
            raise Deviation(f'{self.method}: labels lie in {labels.min()} to {labels.max()}, '
                            f'allowed are 0 to {len(self.classnames)-1}')
        return torch.as_tensor(labels, dtype=torch.int64)

    @staticmethod
    def read_tolerance(given):
        "Two families of files name their tolerances differently."
        if 'features_logits_losses' in given:
            return dict(value=given['features_logits_losses'], loss=given['features_logits_losses'],
                        gradient=given['gradients'], change=given['step3_change'],
                        history=given['loss_history'], after=given['step3_logits'])
        value, change = given['values_rel_l2'], given['step_change_rel_l2']
        found = dict(value=value, loss=given['loss_rel'], gradient=given['grad_rel_l2'],
                     change=change, history=given['loss_rel'], after=value)
        joined = given.get('step_change_all_tensors_rel_l2')
        if joined is not None:
            found['change, all joined'] = joined
        return found

    def settings(self):
        "Beginnings of keys that stand for a setting; one empty one if there are none."
        first = [key.partition('/')[0] for key in self.arrays if '/' in key]
        found = [name for name in dict.fromkeys(first) if not name.startswith(KINDS)]
        return found or ['']

    def under(self, setting='', double=False):
        "Key → array of no setting and of this one, without its name; or those of the float64 run."
        arrays = self.arrays
        if double:
            arrays = {k.removeprefix('f64/'): v for k,v in arrays.items() if k.startswith('f64/')}
        found = {}
        for key,value in arrays.items():
            first, slash, rest = key.partition('/')
            if not slash or first.startswith(KINDS):
                found.setdefault(key, value)
            elif first == setting:
                found[rest] = value
        return found


# ---- comparing ----------------------------------------------------------------------------------

def numbers(x):
    "Whatever holds numbers, as float64 of numpy."
    x = x.detach().cpu().numpy() if torch.is_tensor(x) else np.asarray(x)
    return x.astype(np.float64)


def relative(got, wanted):
    "Relative L2 distance."
    got, wanted = numbers(got), numbers(wanted)
    if got.shape != wanted.shape:
        return math.inf
    norm = np.linalg.norm(wanted)
    distance = np.linalg.norm(got - wanted)
    return float(distance/norm) if norm else float(distance)


def check_shape(label, name, array, shape):
    "An array of the file has the shape that the method's own has."
    if np.shape(array) != tuple(shape):
        raise Deviation(f'{label}: {name} has shape {np.shape(array)}, allowed is {tuple(shape)}')


class Comparison:
    "Counts what was compared, and stops at the first deviation."
    def __init__(self, label):
        self.label = label
        self.groups = {}        # group → [number, largest share, deviation, tolerance, name]
        self.compared = set()   # keys of the file

    def note(self, group, name, deviation, tolerance):
        "Keep one deviation in mind."
        share = deviation/tolerance
        now = self.groups.setdefault(group, [0, -1., 0., tolerance, ''])
        now[0] += 1
        if share > now[1]:
            now[1:] = [share, deviation, tolerance, name]
        if not share <= 1:
            raise Deviation(f'{self.label}: {name} deviates by {deviation:.2e}, '
                            f'allowed is {tolerance:.0e}')

    def array(self, group, name, got, wanted, tolerance):
        "An array by its relative L2 distance."
        self.compared.add(name)
        self.note(group, name, relative(got, wanted), tolerance)

    def summary(self, group, name, got, wanted, tolerance):
        "Norm, sum and first numbers of an array that the file does not hold in full."
        self.compared.add(name)
        got, wanted = numbers(got).ravel(), numbers(wanted)
        check_shape(self.label, name, wanted, (2+min(32, got.size),))
        norm, total, first = wanted[0], wanted[1], wanted[2:]
        unit = norm or 1.
        self.note(group, f'{name} (norm)', abs(np.linalg.norm(got)-norm)/unit, tolerance)
        apart = abs(got.sum()-total)/(unit*math.sqrt(got.size))
        self.note(group, f'{name} (sum)', apart, tolerance)
        apart = np.linalg.norm(got[:len(first)]-first)/(np.linalg.norm(first) or unit)
        self.note(group, f'{name} (first)', apart, 5*tolerance)

    def norm_and_sum(self, group, name, got, wanted, tolerance):
        "Norm and sum alone, both relative to the norm."
        check_shape(self.label, name, wanted, (2,))
        got, (norm, total) = numbers(got), numbers(wanted)
        deviation = max(abs(np.linalg.norm(got)-norm), abs(got.sum()-total))/(norm or 1.)
        self.note(group, name, deviation, tolerance)

    def lines(self):
        "One line a group."
        for group,(count, _, deviation, tolerance, name) in self.groups.items():
            yield (f'{self.label}: {group}: {count} compared, largest deviation {deviation:.1e} '
                   f'({name}), allowed {tolerance:.0e}')


class DoubleComparison(Comparison):
    "Takes what was computed in float64 to the arrays of the file's float64 run, where it has them."
    def __init__(self, compare, arrays):
        super().__init__(compare.label)
        self.compare = compare
        self.arrays = arrays

    # key in single precision → its norm and sum in double precision
    norms = ((r'$', '_norm_sum'), (r'$', '_minus_start_norm_sum'), (r'$', '_minus_eye_norm_sum'),
             (r'grad/ctx$', 'grad_norm_sum'), (r'step3/ctx$', 'step3_delta_norm_sum'))

    def note(self, group, name, deviation, tolerance):
        "Only whole arrays, or their norms and sums, are compared."

    def array(self, group, name, got, wanted, tolerance):
        key = f'f64/{name}'
        if key in self.arrays:
            self.compare.array('float64', key, got, self.arrays[key], 1e-9)
        for ending,other in self.norms:
            key = re.sub(ending, other, f'f64/{name}', count=1)
            if key != f'f64/{name}' and key in self.arrays:
                self.compare.compared.add(key)
                wanted = np.squeeze(self.arrays[key])
                self.compare.norm_and_sum('float64', key, got, wanted, 1e-8)

    def summary(self, group, name, got, wanted, tolerance):
        "Norm and sum, where the float64 run has them."
        key = f'f64/{name}'.replace('step3_delta_summary', 'step3_delta_norm_sum')
        if key in self.arrays and 'step3_delta_summary/' not in name:
            self.compare.compared.add(key)
            self.compare.norm_and_sum('float64', key, got, self.arrays[key], 1e-8)


# ---- what a method says about itself ------------------------------------------------------------

CASES = {}      # official name of a method, letters only → `Case`


def case(name):
    "Make a case known under the letters that its files' `meta['method']` begins with."
    def register(cls):
        CASES[name] = cls
        return cls
    return register


def case_of(file):
    "The class of cases that is right for a file."
    letters = re.match('[a-z]*', file.method.lower().replace('-', '')).group()
    if letters not in CASES:
        raise Deviation(f'method {file.method!r} is not known here, '
                        f'known are {", ".join(CASES)}')
    return CASES[letters]


class Steps:
    "What a method's `step` wants of a trainer."
    seed = 1
    per_epoch = 10**9       # no epoch ends here

    def __init__(self, method, train, given=None):
        self.step = 0
        self.method = method
        self.optimizer = make_optimizer(train, method.trained().values())
        for group in self.optimizer.param_groups:       # what no recipe of ours changes
            for name in ('betas', 'dampening', 'nesterov'):
                if name in group and name in (given or {}):
                    group[name] = given[name]

    def precision(self):
        return nullcontext()

    def backward(self, loss):
        self.optimizer.zero_grad()
        loss.backward()

    def loss_terms(self, images, labels):
        terms = self.method.losses(images, labels)
        self.backward(sum(terms.values()))
        return terms

    def set_rate(self, lr):
        for group in self.optimizer.param_groups:
            group['lr'] = lr

    def update(self, loss):
        self.backward(loss)
        self.optimizer.step()


class Case:
    """One method with one of the settings of a file. A subclass says as little as is needed:
    `own` (name in `METHODS`), `config()`, `own_name(official)`, `terms` and `more_values()`."""
    own = ''
    terms = dict(ce=('ce', 1.))     # official loss term → (term of `losses`, its weight there)
    weights = {}                    # term of `losses` → the setting that is its weight

    def __init__(self, file, setting='', double=False):
        self.file = file
        self.meta = file.meta
        self.setting = setting
        self.dtype = torch.float64 if double else torch.float32
        self.arrays = file.under(setting)
        self.images = file.images.to(self.dtype)
        self.labels = file.labels
        settings = self.meta.get('settings', {})
        self.options = settings.get(setting, settings)       # of this setting, or of all

    @classmethod
    def settings(cls, file):
        "The settings to go through."
        return file.settings()

    # -- to be said by a method
    def config(self):
        "Settings of our method."
        return METHODS[self.own].Config()

    def own_name(self, official):
        "Our name of a trained parameter."
        raise NotImplementedError

    def set_classes(self, method):
        "Tell the method its classes."
        method.set_classes(self.file.classnames, self.meta.get('template', 'a photo of a {}.'))

    def more_values(self, method):
        "Quantities of this method alone: key → tensor."
        return {}

    # -- the same for nearly all
    def build(self):
        "Our method with the file's parameters, in training mode."
        method = METHODS[self.own](tiny_clip(self.meta['clip_seed']), self.config(), 1)
        method = method.to(self.dtype).train()
        self.set_classes(method)
        self.put(method, 'param')
        return method

    def official_names(self):
        "Names of the trained parameters in the file."
        return [name for name,_ in self.meta['parameters_official_order']]

    def mine(self, method):
        "Official name → our parameter; every trained one has exactly one."
        own = method.trained()
        found = {name: own[self.own_name(name)] for name in self.official_names()}
        assert {id(p) for p in found.values()} == {id(p) for p in own.values()}, list(own)
        assert len(found) == len(own)
        return found

    @torch.no_grad()
    def put(self, method, kind):
        "Copy the file's parameters into the method."
        for name,p in self.mine(method).items():
            value = self.arrays[f'{kind}/{name}']
            check_shape(self.file.method, f'{kind}/{name}', value, p.shape)
            p.copy_(torch.from_numpy(np.asarray(value)))

    def features(self, method):
        "Image and text features as the logits take them, not normalised."
        return method.image_features(self.images), method.text_features()

    def values(self, method):
        "Key → tensor of everything but gradients and steps; and the terms of the loss."
        image, text = self.features(method)
        found = dict(image_features_raw=image, text_features_raw=text,
                     image_features=F.normalize(image, dim=-1),
                     text_features=F.normalize(text, dim=-1), logits=method.logits(self.images))
        terms = method.losses(self.images, self.labels)
        found['loss_total'] = sum(terms.values())
        for official,(own,weight) in self.terms.items():
            found[f'loss_{official}'] = self.term(method, own, weight)
        assert set(terms) == {own for own,_ in self.terms.values()}, list(terms)
        found.update(self.more_values(method))
        return found

    def optimiser_settings(self):
        "As the file has them."
        return self.meta.get('optimizer') or self.options

    def term(self, method, own, weight):
        "A term of the loss without its weight, also where that is 0."
        if weight:
            return method.losses(self.images, self.labels)[own]/weight
        config = method.config
        method.config = replace(config, **{self.weights[own]: 1.})
        found = method.losses(self.images, self.labels)[own]
        method.config = config
        return found

    def recipe(self):
        "The optimiser, and the number of steps."
        given = self.optimiser_settings()
        name = given.get('name') or given['optimiser']
        own = {k: given[k] for k in ('lr', 'weight_decay', 'momentum', 'eps') if k in given}
        return TrainConfig(optimizer=name.lower(), **own), given['steps']

    def steps(self, method):
        "Three steps on the whole batch; the loss before each."
        train, n = self.recipe()
        trainer = Steps(method, train, self.optimiser_settings())
        history = []
        for _ in range(n):
            terms = method.step(trainer, self.images, self.labels)
            history.append(float(sum(terms.values()).detach()))
            trainer.step += 1
        return history

    # -- comparing
    def check(self, compare):
        "Everything that the file says about this setting."
        self.check_clip(compare)
        method = self.build()
        self.check_tokens(compare, method)
        self.check_values(compare, method)
        self.check_gradients(compare, method)
        steps = ('step3/', 'step3_delta_summary/', 'step3_logits', 'loss_history')
        if any(key.startswith(steps) for key in self.arrays):
            self.check_steps(compare, method)
        self.check_more(compare, method)
        if self.dtype == torch.float32 and any(k.startswith('f64/') for k in self.file.arrays):
            type(self)(self.file, self.setting, double=True).check_double(compare)

    def check_more(self, compare, method):
        "Whatever only this method has."

    def zero_shot_logits(self):
        "Of the plain CLIP."
        model = tiny_clip(self.meta['clip_seed']).to(self.dtype)
        template = self.meta.get('zero_shot_template', 'a photo of a {}.')
        with torch.no_grad():
            image = F.normalize(image_features(model, self.images), dim=-1)
            tokens = tokenize(model, self.file.classnames, template)
            text = F.normalize(text_features(model, tokens), dim=-1)
            return model.logit_scale.exp()*image@text.T

    def check_clip(self, compare):
        "Plain CLIP first: if it deviates, nothing else means anything."
        compare.array('plain CLIP', 'zero_shot_logits', self.zero_shot_logits(),
                      self.arrays['zero_shot_logits'], self.file.tolerance['value'])

    def check_tokens(self, compare, method):
        "Our sentences are the file's, but for what stands in the slots."
        self.check_sentences(compare, 'tokens', method.prompts)

    def token_ids(self, compare, key):
        "An array of ids, one row of 77 for each sentence."
        ids = self.arrays[key]
        if ids.ndim != 2 or ids.shape[1] != CONTEXT or (ids != ids.astype(np.int64)).any():
            raise Deviation(f'{compare.label}: {key} holds no rows of {CONTEXT} ids')
        return ids.astype(np.int64)

    def placeholder(self, n):
        "Words that stand in the file's sentences where `n` learned vectors go."
        return self.meta.get('context_words') or ' '.join(['X']*n)

    def check_plain_tokens(self, compare, key, sentences):
        "Ids of sentences that hold no learned vector."
        wanted = self.token_ids(compare, key)
        ids = numbers(TOKENIZER(sentences))
        same = wanted.shape == ids.shape and (wanted == ids).all()
        compare.compared.add(key)
        compare.note('tokens', key, 0. if same else math.inf, 1.)

    def check_sentences(self, compare, key, prompts):
        "The same of any prompts whose slots are behind the start."
        wanted = self.token_ids(compare, key)
        tokens, slots = numbers(prompts.tokens), numbers(prompts.slots) > 0
        M = prompts.n_slots
        words = np.delete(wanted, range(1, 1+M), axis=1)      # theirs stand behind the start
        n = tokens.shape[-1] - M
        rest = tokens[~slots].reshape(len(tokens), n)
        same = np.array_equal(rest, words[:, :n]) and (words[:, n:] == 0).all()
        held = word_ids(self.placeholder(M))[:M]
        same = same and len(held) == M and (wanted[:, 1:1+M] == held).all()
        compare.compared.add(key)
        compare.note('tokens', key, 0. if same else math.inf, 1.)

    def check_values(self, compare, method):
        "Features, logits, terms of the loss."
        values = self.values(method)
        lacking = [key for key in values if key not in self.arrays]
        if lacking:
            raise Deviation(f'{compare.label}: the file lacks {", ".join(lacking)}')
        for key,value in values.items():
            kind = 'loss' if key.startswith('loss') else 'value'
            group = dict(loss='losses', value='features' if 'feature' in key else 'logits')[kind]
            if kind == 'value' and 'feature' not in key and key != 'logits':
                group = 'others'
            compare.array(group, key, value, self.arrays[key], self.file.tolerance[kind])

    def gradients(self, method, loss):
        "Official name → gradient of a loss."
        mine = self.mine(method)
        found = torch.autograd.grad(loss, list(mine.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n,p),g in zip(mine.items(), found)}

    def check_gradients(self, compare, method):
        "Of the total loss, in full or as a summary."
        total = sum(method.losses(self.images, self.labels).values())
        tolerance = self.file.tolerance['gradient']
        for name,g in self.gradients(method, total).items():
            full, short = f'grad/{name}', f'grad_summary/{name}'
            assert full in self.arrays or short in self.arrays, f'no gradient of {name}'
            if full in self.arrays:
                compare.array('gradients', full, g, self.arrays[full], tolerance)
            if short in self.arrays:
                compare.summary('gradients', short, g, self.arrays[short], tolerance)

    def check_steps(self, compare, method):
        "Parameters, losses and logits of three steps; the method is another one afterwards."
        history = self.steps(method)
        compare.array('losses of the steps', 'loss_history', history, self.arrays['loss_history'],
                      self.file.tolerance['history'])
        tolerance = self.file.tolerance
        got_all, wanted_all = [], []
        for name,p in self.mine(method).items():
            before = numbers(self.arrays[f'param/{name}'])
            change = numbers(p) - before
            full, short = f'step3/{name}', f'step3_delta_summary/{name}'
            assert full in self.arrays or short in self.arrays, f'no step of {name}'
            if full in self.arrays:
                wanted = numbers(self.arrays[full]) - before
                compare.array('change by the steps', full, change, wanted, tolerance['change'])
                got_all.append(change.ravel())
                wanted_all.append(wanted.ravel())
            if short in self.arrays:
                compare.summary('change by the steps', short, change, self.arrays[short],
                                tolerance['change'])
        if 'change, all joined' in tolerance and got_all:
            compare.array('change, all joined', 'all step3/', np.concatenate(got_all),
                          np.concatenate(wanted_all), tolerance['change, all joined'])
        with torch.no_grad():
            compare.array('logits after the steps', 'step3_logits', method.logits(self.images),
                          self.arrays['step3_logits'], tolerance['after'])

    def check_double(self, compare):
        "The same against the file's float64 run: 1e-9 for values, 1e-8 for norms."
        wanted = self.file.under(self.setting, double=True)
        method = self.build()
        if 'zero_shot_logits' in wanted:
            compare.array('float64', 'f64/zero_shot_logits', self.zero_shot_logits(),
                          wanted['zero_shot_logits'], 1e-9)
        for key,value in self.values(method).items():
            if key in wanted:
                compare.array('float64', f'f64/{key}', value, wanted[key], 1e-9)
        total = sum(method.losses(self.images, self.labels).values())
        gradients = self.gradients(method, total)
        self.check_rows(compare, 'grad_norm_sum', gradients, wanted)
        if 'step3_delta_norm_sum' in wanted:
            before = {n: p.detach().clone() for n,p in self.mine(method).items()}
            history = self.steps(method)
            compare.array('float64', 'f64/loss_history', history, wanted['loss_history'], 1e-9)
            with torch.no_grad():
                compare.array('float64', 'f64/step3_logits', method.logits(self.images),
                              wanted['step3_logits'], 1e-9)
            change = {n: p-before[n] for n,p in self.mine(method).items()}
            self.check_rows(compare, 'step3_delta_norm_sum', change, wanted)

    def check_rows(self, compare, key, tensors, wanted):
        "Norms and sums of all parameters, in the order of their sorted names."
        if key in wanted:
            compare.compared.add(f'f64/{key}')
            names = self.meta['sorted_names']
            if sorted(names) != sorted(tensors):
                raise Deviation(f'{compare.label}: sorted_names of meta are not the parameters')
            check_shape(compare.label, f'f64/{key}', wanted[key], (len(names), 2))
            for name,row in zip(names, wanted[key]):
                compare.norm_and_sum('float64', f'f64/{key}/{name}', tensors[name], row, 1e-8)


# ---- the methods --------------------------------------------------------------------------------

@case('coop')
class CoOpCase(Case):
    own = 'coop'

    def config(self):
        return METHODS[self.own].Config(words='', length=self.meta['n_ctx'],
                                        position=self.meta['class_token_position'])

    def put(self, method, kind):
        "A context of three axes has vectors of its own for every class."
        shape = self.arrays[f'{kind}/prompt_learner.ctx'].shape
        if len(shape) == 3 and shape[0] == len(self.file.classnames):
            zeros = torch.zeros(shape, dtype=self.dtype)
            method.context = torch.nn.Parameter(zeros)
        super().put(method, kind)

    def own_name(self, official):
        return {'prompt_learner.ctx': 'context'}[official]


@case('maple')
class MaPLeCase(Case):
    own = 'maple'

    def config(self):
        return METHODS[self.own].Config(words=self.meta.get('context_words', ''),
                                        length=self.meta['n_ctx'], depth=self.meta['depth'])

    def own_name(self, official):
        first = {'ctx': 'prompts_text.0', 'proj.weight': 'to_image.0.weight',
                 'proj.bias': 'to_image.0.bias'}
        name = official.removeprefix('prompt_learner.')
        if name in first:
            return first[name]
        kind, number, *rest = name.split('.')
        own = dict(compound_prompts_text='prompts_text', compound_prompt_projections='to_image')
        return '.'.join([own[kind], str(int(number)+1), *rest])

    def more_values(self, method):
        return dict(visual_prompts=torch.stack(method.image_prompts()))


@case('mma')
class MMACase(Case):
    own = 'mma'

    def config(self):
        o = self.options
        return METHODS[self.own].Config(rank=o['rank'], scale=o['scale'], start=o['adapter_start'])

    def own_name(self, official):
        tower, block, layer, *rest = official.split('.')
        if tower == 'shared_adapter':
            return f'image.{block}.shared.{rest[0]}'
        side = dict(visual_adapter='image', text_adapter='text')[tower]
        return f'{side}.{block}.{layer}.{rest[-1]}'

    def check_more(self, compare, method):
        "The gradient without rescaling, where the file has it."
        plain = {k: v for k,v in self.arrays.items() if k.startswith('plain_grad/')}
        if not plain:
            return
        method = self.build()
        for m in attached(method.model).values():
            m.config = replace(m.config, gradient='plain')
        total = sum(method.losses(self.images, self.labels).values())
        for name,g in self.gradients(method, total).items():
            key = f'plain_grad/{name}'
            if key in plain:
                compare.array('gradients, not rescaled', key, g, plain[key],
                              self.file.tolerance['gradient'])


@case('kgcoop')
class KgCoOpCase(CoOpCase):
    own = 'kgcoop'
    weights = dict(guide='weight')

    def config(self):
        return replace(super().config(), guide=self.meta['template'], weight=self.meta['weight'])

    @property
    def terms(self):
        return dict(ce=('ce', 1.), kg=('guide', self.meta['weight']))

    def check_more(self, compare, method):
        "The gradients of the two terms."
        method = self.build()
        for official,(own,weight) in self.terms.items():
            loss = self.term(method, own, weight)
            for name,g in self.gradients(method, loss).items():
                key = f'grad_{official}/{name}'
                compare.array('gradients of the terms', key, g, self.arrays[key],
                              self.file.tolerance['gradient'])


@case('cocoop')
class CoCoOpCase(CoOpCase):
    own = 'cocoop'

    def own_name(self, official):
        name = official.removeprefix('prompt_learner.')
        return name.replace('ctx', 'context').replace('meta_net.linear1', 'net.0') \
            .replace('meta_net.linear2', 'net.2')

    def features(self, method):
        image = method.image_features(self.images)
        return image, method.conditional_features(F.normalize(image, dim=-1))

    def more_values(self, method):
        x = F.normalize(method.image_features(self.images), dim=-1)
        return dict(meta_net_output=method.net(x))


@case('tcp')
class TCPCase(Case):
    own = 'tcp'
    weights = dict(guide='weight')

    def config(self):
        model = self.meta['settings']['model']
        words = self.meta['prompt_template'].split()
        M = model['n_ctx']
        sentence = ' '.join(['*']*M + words[M:])
        return METHODS[self.own].Config(sentence=sentence, guide=self.meta['guide_template'],
                                        weight=model['guide_weight'])

    def placeholder(self, n):
        return ' '.join(self.meta['prompt_template'].split()[:n])

    @property
    def terms(self):
        weight = self.meta['settings']['model']['guide_weight']
        return dict(ce=('ce', 1.), guide=('guide', weight))

    def own_name(self, official):
        return official.replace('ctx', 'context').replace('meta_net.linear1', 'net.0') \
            .replace('meta_net.linear2', 'net.2')

    def check_tokens(self, compare, method):
        "The guide's sentences as well."
        super().check_tokens(compare, method)
        guide = method.guide_prompts.tokens.squeeze(-2)
        wanted = self.token_ids(compare, 'guide_tokens')
        n = guide.shape[-1]
        same = np.array_equal(numbers(guide), wanted[:, :n]) and (wanted[:, n:] == 0).all()
        compare.compared.add('guide_tokens')
        compare.note('tokens', 'guide_tokens', 0. if same else math.inf, 1.)

    def more_values(self, method):
        return dict(guide_features=method.guide_features(), class_prompts=method.class_prompts())


@case('metaprompt')
class MetaPromptCase(Case):
    own = 'metaprompt'
    terms = dict(mix=('ce', 1.), image_branch=('ce_image', 1.), text_branch=('ce_text', 1.))
    ways = dict(released='kept', unshared='undone'), dict(torch1='drift', torch2='rest')

    def __init__(self, file, setting='', double=False):
        super().__init__(file, setting, double)
        self.template = self.meta['zero_shot_template']      # the method's own, not plain CLIP's
        self.meta = {k: v for k,v in self.meta.items() if k != 'zero_shot_template'}
        self.changes = {}

    @classmethod
    def settings(cls, file):
        return ['']

    def config(self):
        options = self.meta['settings']
        changes = dict(dict(meta_step=options['meta_step']), **self.changes)
        return METHODS[self.own].Config(length=options['n_ctx'], **changes)

    def set_classes(self, method):
        method.set_classes(self.file.classnames, self.template)

    def own_name(self, official):
        return {'prompt_learner.ctx': 'text', 'vision_prompt_learner.ctx': 'image'}[official]

    def placeholder(self, n):
        return ' '.join(self.meta['prompt_template'].split()[:n])

    def check_tokens(self, compare, method):
        "The sentences of the plain CLIP as well; the names in them keep their underscores."
        super().check_tokens(compare, method)
        sentences = [self.template.format(name) for name in self.file.classnames]
        self.check_plain_tokens(compare, 'zero_shot_tokens', sentences)

    def more_values(self, method):
        frozen = method.frozen_image(self.images)
        by_image, by_text = method.branches(self.images, frozen)
        return dict(image_features_zs_raw=frozen, image_features_zs=F.normalize(frozen, dim=-1),
                    text_features_zs=F.normalize(method.frozen_text, dim=-1),
                    logits_image_branch=by_image, logits_text_branch=by_text)

    def check_change(self, compare, key, p, name):
        "A parameter's change since the start."
        start = self.arrays[f'param/{name}']
        compare.array('change by the steps', key, numbers(p)-numbers(start),
                      numbers(self.file.arrays[key])-numbers(start),
                      self.file.tolerance['change'])

    def check_more(self, compare, method):
        "Three steps without episodes; two with them, in all four ways."
        self.changes = dict(meta_step=0.)
        method = self.build()
        history = self.steps(method)
        compare.array('losses of the steps', 'plain3/loss_history', history,
                      self.file.arrays['plain3/loss_history'], self.file.tolerance['history'])
        count = sum(p.numel() for p in self.mine(method).values())
        compare.array('others', 'n_trained', count, self.file.arrays['n_trained'], 1e-9)
        for name,p in self.mine(method).items():
            self.check_change(compare, f'plain3/step3/{name}', p, name)
            key = f'plain3/step3_delta_summary/{name}'
            if key in self.file.arrays:
                change = numbers(p)-numbers(self.arrays[f'param/{name}'])
                compare.summary('change by the steps', key, change, self.file.arrays[key],
                                self.file.tolerance['change'])
        with torch.no_grad():
            compare.array('logits after the steps', 'plain3/step3_logits',
                          method.logits(self.images), self.file.arrays['plain3/step3_logits'],
                          self.file.tolerance['after'])
        restores, rests = self.ways
        for release,second in restores.items():
            for version,resting in rests.items():
                self.changes = dict(second_trial=second, resting_tokens=resting)
                self.check_episodes(compare, f'episode/{release}_{version}/')
        self.changes = dict(second_trial='undone', resting_tokens='rest')
        self.check_parts(compare)
        self.changes = {}

    def check_double(self, compare):
        "The episodes as well."
        super().check_double(compare)
        self.check_more(DoubleComparison(compare, self.file.arrays), None)
        key = 'plain3/step3_delta_norm_sum'
        if f'f64/{key}' in self.file.arrays:
            self.changes = dict(meta_step=0.)
            method = self.build()
            before = {n: p.detach().clone() for n,p in self.mine(method).items()}
            self.steps(method)
            self.changes = {}
            change = {n: p-before[n] for n,p in self.mine(method).items()}
            self.check_rows(compare, key, change, {key: self.file.arrays[f'f64/{key}']})

    def check_parts(self, compare):
        "What an episode is made of: the step before it, both trials, both gradients."
        arrays, tolerance = self.file.arrays, self.file.tolerance
        method = self.build()
        trainer = Steps(method, self.recipe()[0], self.optimiser_settings())
        frozen = method.frozen_image(self.images)
        loss = sum(method.terms(self.images, frozen, self.labels).values())
        compare.array('losses', 'episode/outer_loss', loss, arrays['episode/outer_loss'],
                      tolerance['loss'])
        trainer.update(loss)
        for own,official in (('text', 'prompt_learner.ctx'),
                             ('vision', 'vision_prompt_learner.ctx')):
            key = f'episode/{own}_after_outer'
            self.check_change(compare, key, self.mine(method)[official], official)
        compare.compared |= {'episode/class_split_1', 'episode/class_split_2',
                             'episode/first_half_size'}         # inputs
        order = torch.from_numpy(arrays['episode/class_split_1'])
        first = int(arrays['episode/first_half_size'])
        halves = order[:first], order[first:]
        start = method.text.detach().clone()
        losses, trace = [loss.item()], [start.clone()]
        filled = all(torch.isin(self.labels, half).any() for half in halves)
        for i,(here,there) in enumerate((halves, halves[::-1])):
            if len(here) < 2 or not filled:
                continue
            trial = method.half_loss(trainer, frozen, self.labels, there)
            method.trial(trainer, trial)
            self.check_change(compare, f'episode/text_moved{i}', method.text, 'prompt_learner.ctx')
            tested = method.half_loss(trainer, frozen, self.labels, here)
            gradient, = torch.autograd.grad(tested, method.text)
            losses.append(trial.item())
            trace.append(method.text.detach().clone())
            for key in [k for k in arrays if re.fullmatch(f'episode/(.*/)?meta_grad{i}', k)]:
                compare.array('gradients', key, gradient, arrays[key], tolerance['gradient'])
            for name,got in (('train', trial), ('test', tested)):
                key = f'episode/inner_{name}_loss{i}'
                compare.array('losses', key, got, arrays[key], tolerance['loss'])
            method.text.data.copy_(start)
        before = numbers(self.arrays['param/prompt_learner.ctx'])
        for key in [k for k in arrays if re.fullmatch('episode/.*/losses_iter1', k)]:
            compare.array('losses', key, losses, arrays[key], tolerance['loss'])
        for key in [k for k in arrays if re.fullmatch('episode/.*/text_trace_iter1', k)]:
            compare.array('change by the steps', key, numbers(torch.stack(trace))-before,
                          numbers(arrays[key])-before, tolerance['change'])

    def check_episodes(self, compare, prefix):
        "The file's halves of the classes, in two iterations."
        method = self.build()
        trainer = Steps(method, self.recipe()[0], self.optimiser_settings())
        first = int(self.file.arrays['episode/first_half_size'])
        for i in (1, 2):
            frozen = method.frozen_image(self.images)
            trainer.update(sum(method.terms(self.images, frozen, self.labels).values()))
            order = torch.from_numpy(self.file.arrays[f'episode/class_split_{i}'])
            method.episode(trainer, frozen, self.labels, (order[:first], order[first:]))
            for own,official in (('text', 'prompt_learner.ctx'),
                                 ('vision', 'vision_prompt_learner.ctx')):
                self.check_change(compare, f'{prefix}{own}_after_iter{i}',
                                  self.mine(method)[official], official)


@case('promptsrc')
class PromptSRCCase(Case):
    own = 'promptsrc'
    weights = dict(text='text_weight', image='image_weight', logits='logits_weight')

    @property
    def terms(self):
        m = self.meta
        return dict(ce=('ce', 1.), scl_text=('text', m['text_weight']),
                    scl_image=('image', m['image_weight']),
                    scl_logits=('logits', m['logits_weight']))

    def config(self):
        m = self.meta
        assert m['depth_text'] == m['depth_vision'], 'one depth for both towers'
        names = ('text_weight', 'image_weight', 'logits_weight')
        weights = {name: float(m[name]) for name in names}
        words = self.placeholder(m['n_ctx'])
        return METHODS[self.own].Config(words=words, depth=m['depth_text'],
                                        image_length=m['n_ctx_vision'],
                                        sentences=len(m['teacher_template_indices']),
                                        mean=float(m['gpa']['mean']), std=float(m['gpa']['std']),
                                        **weights)

    def set_classes(self, method):
        "With the file's sentences for the teacher, where they are not the first of the list."
        super().set_classes(method)
        chosen = self.meta['teacher_template_indices']
        if sorted(chosen) == list(range(len(chosen))):
            return
        sentences = [promptsrc.OPENAI_IMAGENET_TEMPLATES[i] for i in chosen]
        with patch.object(promptsrc, 'OPENAI_IMAGENET_TEMPLATES', sentences):
            method.teacher_features()       # kept until other classes are set

    def own_name(self, official):
        if official == 'prompt_learner.ctx':
            return 'text.0'
        tower, *rest = official.split('.')
        block = 0 if rest == ['VPT'] else rest[2]
        return f'{tower.removesuffix("_encoder")}.{block}'

    def more_values(self, method):
        frozen = method.frozen_image(self.images)
        return dict(teacher_text_features=method.teacher_features(), teacher_image_features=frozen,
                    teacher_logits=method.classify(frozen, method.teacher_features()))

    def check_more(self, compare, method):
        "Weights of the mean over epochs."
        gpa = self.meta['gpa']
        compare.array('weights of epochs', 'gpa_weights',
                      epoch_weights(gpa['epochs'], gpa['mean'], gpa['std']),
                      self.arrays['gpa_weights'], self.file.tolerance['value'])


@case('cliplora')
class CLIPLoRACase(Case):
    own = 'clip-lora'

    @classmethod
    def settings(cls, file):
        return ['']

    def config(self):
        o = self.options
        return METHODS[self.own].Config(rank=o['r'], alpha=float(o['alpha']), dropout=0.)

    def build(self):
        "With the constant 100 in place of CLIP's temperature."
        method = super().build()
        with torch.no_grad():
            method.model.logit_scale.fill_(math.log(self.options['logit_scale']))
        return method

    @staticmethod
    def place(official):
        "(our name, which of q, k and v)"
        words = official.split('.')
        tower = 'image' if words[0] == 'visual' else 'text'
        block = int(words[words.index('resblocks')+1])+1
        return f'{tower}.{block}.{words[-1][-1]}', 'qkv'.index(words[-2][0])

    def mine(self, method):
        "Official name → its third of our parameter."
        own, found = method.trained(), {}
        for name in self.official_names():
            ours, third = self.place(name)
            found[name] = own[ours][third]
        assert sum(p.numel() for p in found.values()) == sum(p.numel() for p in own.values())
        return found

    def gradients(self, method, loss):
        own = method.trained()
        found = dict(zip(own, torch.autograd.grad(loss, list(own.values()))))
        places = {name: self.place(name) for name in self.official_names()}
        return {name: found[ours][third] for name,(ours,third) in places.items()}

    def steps(self, method):
        "The method sets its own rate at every step."
        train, n = self.recipe()
        trainer = Steps(method, train, self.optimiser_settings())
        trainer.config, trainer.steps = train, self.options['total_iters']
        self.rates = [method.rate(train.lr, step, trainer.steps) for step in range(n)]
        history = []
        for _ in range(n):
            terms = method.step(trainer, self.images, self.labels)
            history.append(float(sum(terms.values()).detach()))
            trainer.step += 1
        return history

    def check_more(self, compare, method):
        "The rates of the steps; in evaluation the updates are added to the weights."
        compare.array('rates', 'lrs', self.rates, self.arrays['lrs'], 1e-6)
        self.check_without_dropout(compare)
        with torch.no_grad():
            compare.array('logits after the steps', 'step3_logits_merged',
                          method.eval().logits(self.images), self.arrays['step3_logits_merged'],
                          self.file.tolerance['after'])


    def check_double(self, compare):
        "In evaluation the updates are added to the weights, here as well."
        super().check_double(compare)
        self.check_without_dropout(DoubleComparison(compare, self.file.arrays))
        key = 'f64/step3_logits_merged'
        if key in self.file.arrays:
            method = self.build()
            self.steps(method)
            with torch.no_grad():
                compare.array('float64', key, method.eval().logits(self.images),
                              self.file.arrays[key], 1e-9)

    def check_without_dropout(self, compare):
        "Another path of the official code: its loss is right, its gradients in the last block."
        given = {k: v for k,v in self.file.arrays.items() if k.startswith('dropout_rate0/')}
        if not given:
            return
        method = self.build()
        total = sum(method.losses(self.images, self.labels).values())
        compare.array('losses', 'dropout_rate0/loss', total, given['dropout_rate0/loss'],
                      self.file.tolerance['loss'])
        for name,g in self.gradients(method, total).items():
            key = f'dropout_rate0/grad/{name}'
            if key in given and f'resblocks.{BLOCKS-1}.' in name:
                compare.array('gradients', key, g, given[key], self.file.tolerance['gradient'])


@case('proda')
class ProDACase(Case):
    own = 'proda'
    forms = dict(diag='diagonal', full='full')

    @classmethod
    def settings(cls, file):
        return ['']

    def places(self):
        "Learned vectors before the name, for every sentence: the file's 0, 1, 2 are front to end."
        length = self.options['n_ctx']
        before = 0, length//2, length
        return [before[position] for position in self.meta['positions']]

    def config(self, **changes):
        "The sentences have their names where the file has them."
        places = self.places()
        class Placed(METHODS[self.own].Config):
            def places(self):
                return places
        o = self.options
        changes = dict(diversity=o['alpha'], **changes)
        return Placed(sentences=o['K'], length=o['n_ctx'],
                      per_step=len(self.meta['prompt_batch']), **changes)

    def ways(self, steps):
        "Beginning of keys → settings of the bound it is named after, such as 'batch4_diag_5'."
        found = {}
        for first in self.file.settings():
            if first.startswith('steps_') != steps:
                continue
            form = r'(?:steps_)?(?:batch(\d+)_)?(diag|full)_(?:K([+-]1)?|(\d+))'
            named = re.fullmatch(form, first)
            if named is None:
                raise Deviation(f'{self.file.method}: no form of the bound is called {first!r}')
            batch, form, more, divisor = named.groups()
            more = int(divisor)-int(batch) if batch and divisor else int(more or 0)
            found[first] = dict(covariance=self.forms[form], divisor_more=more)
        return found

    def own_name(self, official):
        return {'ctx': 'context'}[official]

    def placeholder(self, n):
        return ' '.join(self.meta['template'].split()[:n])

    def check(self, compare):
        self.check_clip(compare)
        method = self.build()
        self.check_features(compare, method)
        self.check_bounds(compare, method)
        for way,changes in self.ways(steps=False).items():
            method.config = self.config(**changes)
            self.check_way(compare, method, way)
        for way,changes in self.ways(steps=True).items():
            method.config = self.config(**changes)
            self.put(method, 'param')
            self.check_three_steps(compare, method, way)
        if self.dtype == torch.float32 and any(k.startswith('f64/') for k in self.file.arrays):
            double = type(self)(self.file, self.setting, double=True)
            double.check(DoubleComparison(compare, self.file.arrays))

    def check_features(self, compare, method):
        "Features of all sentences, their mean, variances, likeness, logits of a test."
        value = self.file.tolerance['value']
        if self.options['n_ctx'] in self.places():
            at_end = self.places().index(self.options['n_ctx'])
            self.check_sentences(compare, 'tokens', method.prompts[at_end])
        names = [name.replace('_', ' ') for name in self.file.classnames]
        sentences = [self.meta['template'].format(name) for name in names]
        self.check_plain_tokens(compare, 'tokens', sentences)
        self.check_sentences(compare, 'plain_tokens', method.nameless)
        lengths = [len(word_ids(name.replace('_', ' '))) for name in self.file.classnames]
        compare.array('tokens', 'name_lens', lengths, self.file.arrays['name_lens'], 1e-9)
        raw = encode_text(method.model, method.prompts, method.context[:, None])
        w = method.sentence_features()
        x = F.normalize(method.image_features(self.images), dim=-1)
        plain = encode_text(method.model, method.nameless, method.context[:, None]).squeeze(-2)
        found = dict(text_features_raw=raw.transpose(0, 1), text_features=w.transpose(0, 1),
                     image_features=x, mean_weights=w.mean(0),
                     image_features_raw=method.image_features(self.images),
                     plain_features_raw=plain, plain_features=F.normalize(plain, dim=-1),
                     logits=method.logits(self.images), loss_div=method.likeness())
        for short,form in self.forms.items():
            found[f'sigma2_{short}'] = difference_variance(x, w, self.labels, form)
        for key,got in found.items():
            compare.array('features and variances', key, got, self.arrays[key], value)

    def check_bounds(self, compare, method):
        "The bound with both forms of the covariance and all divisors; the loss without it."
        arrays, tolerance = self.file.arrays, self.file.tolerance['loss']
        for short,form in self.forms.items():
            for more,name in ((-1, 'K-1'), (0, 'K'), (1, 'K+1')):
                method.config = self.config(covariance=form, divisor_more=more)
                got = F.cross_entropy(method.bound(self.images, self.labels), self.labels)
                key = f'loss_upper_{short}_{name}'
                compare.array('losses', key, got, arrays[key], tolerance)
        method.config = self.config()
        mean = method.logits(self.images)
        compare.array('logits', 'logits_mean', mean, arrays['logits_mean'],
                      self.file.tolerance['value'])
        compare.array('losses', 'loss_mean', F.cross_entropy(mean, self.labels),
                      arrays['loss_mean'], tolerance)

    def check_way(self, compare, method, way):
        "One form of the bound: its logits, losses and gradient."
        arrays, tolerance = self.file.arrays, self.file.tolerance
        if way.startswith('batch'):
            method.chosen = torch.tensor(self.meta['prompt_batch'])
        terms = method.losses(self.images, self.labels)
        logits = method.bound(self.images, self.labels)
        method.chosen = None
        total = sum(terms.values())
        compare.array('logits', f'{way}/logits_upper', logits, arrays[f'{way}/logits_upper'],
                      tolerance['value'])
        found = dict(upper=terms['ce'], div=method.likeness(), total=total)
        for name,got in found.items():
            key = f'{way}/loss_{name}'
            compare.array('losses', key, got, arrays[key], tolerance['loss'])
        gradient = self.gradients(method, total)['ctx']
        compare.array('gradients', f'{way}/grad/ctx', gradient, arrays[f'{way}/grad/ctx'],
                      tolerance['gradient'])

    def check_three_steps(self, compare, method, way):
        "Steps on all sentences at once."
        arrays, tolerance = self.file.arrays, self.file.tolerance
        train, n = self.recipe()
        trainer = Steps(method, train, self.optimiser_settings())
        history = []
        for _ in range(n):
            loss = sum(method.losses(self.images, self.labels).values())
            history.append(loss.item())
            trainer.update(loss)
        compare.array('losses of the steps', f'{way}/loss_history', history,
                      arrays[f'{way}/loss_history'], tolerance['history'])
        before = numbers(arrays['param/ctx'])
        change = numbers(method.context)-before
        compare.array('change by the steps', f'{way}/step3/ctx', change,
                      numbers(arrays[f'{way}/step3/ctx'])-before, tolerance['change'])
        key = f'{way}/step3_delta_summary/ctx'
        if key in arrays:
            compare.summary('change by the steps', key, change, arrays[key], tolerance['change'])


@case('lfa')
class LFACase(Case):
    own = 'lfa'

    def config(self, nearest=None):
        o = self.options
        return METHODS[self.own].Config(beta=o['beta_procrustes'], margin_scale=o['arerank_scale'],
                                        nearest=nearest or o['knn'], noise=0., dropout=0.)

    def check(self, compare):
        self.check_clip(compare)
        method = METHODS[self.own](tiny_clip(self.meta['clip_seed']), self.config(), 1)
        method = method.to(self.dtype).train()
        given = {k: torch.from_numpy(v) for k,v in self.arrays.items()}
        given = {k: v.to(self.dtype) if v.is_floating_point() else v for k,v in given.items()}
        x, w, labels = given['visual_features'], given['class_prototypes'], given['labels']
        compare.compared |= {'visual_features', 'class_prototypes', 'labels', 'W'}     # inputs
        if self.setting == 'clip':
            found = self.check_features(compare, method, x, w)
            if self.dtype == torch.float64:
                x, w = found
        self.check_start(compare, given, x, w, labels)
        self.check_loss(compare, method, given, x, w, labels)
        runs = [key.partition('/')[0] for key in self.arrays if re.match(r'n\d+/', key)]
        for run in dict.fromkeys(runs):
            self.check_run(compare, method, run, given, x, w, labels)
        if self.dtype == torch.float32 and any(k.startswith('f64/') for k in self.file.arrays):
            type(self)(self.file, self.setting, double=True).check_double(compare)

    def check_features(self, compare, method, x, w):
        "The file's features are the tiny CLIP's."
        self.set_classes(method)
        with torch.no_grad():
            method.matrix.copy_(torch.eye(len(method.matrix)))
            got = dict(visual_features=method.image_features(self.images),
                       class_prototypes=F.normalize(method.text_features(), dim=-1))
        for key,wanted in dict(visual_features=x, class_prototypes=w).items():
            compare.array('features', key, got[key], wanted, self.file.tolerance['value'])
        return got.values()

    def check_double(self, compare):
        "The float64 run from the tiny CLIP's features; those of `synth` are not in the file."
        start = f'f64/{self.setting}/'
        arrays = {k.replace(start, 'f64/', 1): v for k,v in self.file.arrays.items()}
        if self.setting == 'clip':
            self.check(DoubleComparison(compare, arrays))

    def check_start(self, compare, given, x, w, labels):
        "The part of the closed form that the data determine; all of it at full rank."
        tolerance = self.meta['tolerance']
        first = start_matrix(x, w, labels, 0.)
        allowed = tolerance['procrustes_unique_part_rel_l2']
        unique = given['procrustes_unique_part']
        compare.array('closed form', 'procrustes_unique_part', given['projector_left'] @ first,
                      unique, allowed)
        _, singular, _ = torch.linalg.svd((x.T @ w[labels]).double())
        theirs = given['procrustes_beta0.0']
        mixed = .1*theirs + .9*torch.eye(len(theirs), dtype=self.dtype)
        found = {'projector_left': unique @ unique.T, 'projector_right': unique.T @ unique,
                 'singular_values': singular, 'procrustes_beta0.9': mixed}
        for key,got in found.items():
            compare.array('closed form', key, got, given[key], allowed)
        compare.array('closed form', 'procrustes_beta0.0', given['projector_left'] @ theirs, unique,
                      allowed)
        full_rank = singular[-1] > 1e-5*singular[0]     # else the closed form is not unique
        if full_rank and len(singular) == len(first):
            for beta in (0., .9):
                key = f'procrustes_beta{beta}'
                compare.array('closed form', key, start_matrix(x, w, labels, beta), given[key],
                              tolerance['synth_procrustes_rel_l2'])

    def check_loss(self, compare, method, given, x, w, labels):
        "Loss, gradient and logits at the given matrix."
        for nearest in (3, 1):
            method.config = self.config(nearest)
            with torch.no_grad():
                method.matrix.copy_(given['W'])
            loss = method.rerank(x, w, labels)
            gradient, = torch.autograd.grad(loss, method.matrix)
            key = f'loss_knn{nearest}'
            compare.array('losses', key, loss, given[key], self.file.tolerance['loss'])
            key = f'grad_knn{nearest}'
            compare.array('gradients', key, gradient, given[key], self.file.tolerance['gradient'])
        method.config = self.config()
        compare.array('logits', 'logits_at_W', method.classify(x @ method.matrix, w),
                      given['logits_at_W'], self.file.tolerance['value'])
        distances = torch.cdist(F.normalize(x @ method.matrix, dim=-1), w)
        compare.array('others', 'distances_at_W', distances, given['distances_at_W'],
                      self.file.tolerance['value'])

    def check_run(self, compare, method, run, given, x, w, labels):
        "The first steps of a run: rates, losses, momenta, both matrices."
        total = int(run[1:])
        history = self.arrays[f'{run}/loss_history']
        start, eye = given['W'], torch.eye(len(given['W']), dtype=self.dtype)
        with torch.no_grad():
            method.matrix.copy_(start)
            method.average.copy_(eye)
        train = TrainConfig(optimizer='adamw', lr=self.options['lr'],
                            weight_decay=self.options['weight_decay'], eps=self.options['eps'])
        trainer = Steps(method, train, self.optimiser_settings())
        tolerance, given_tolerance = self.file.tolerance, self.meta['tolerance']
        losses, rates, momenta = [], [], []
        for t in range(len(history)):
            rates.append(method.rate(train.lr, t, total))
            trainer.set_rate(rates[-1])
            loss = method.rerank(x, w, labels)
            losses.append(loss.item())
            trainer.update(loss)
            key, moved = f'{run}/W_after{t+1}', method.matrix-start
            if key in given or t+1 == len(history):
                compare.array('change by the steps', key, moved, given[key]-start,
                              tolerance['change'])
            apart = method.average-method.matrix.detach()   # what is left of it is the momentum
            method.follow(t, total)
            left = (apart*(method.average-method.matrix.detach())).sum()
            momenta.append(float(left/apart.square().sum()))
        key = f'{run}/step3_delta_summary'
        if key in given and len(history) == 3:
            compare.summary('change by the steps', key, method.matrix-start, self.arrays[key],
                            tolerance['change'])
        compare.array('losses of the steps', f'{run}/loss_history', losses, history,
                      tolerance['history'])
        compare.array('rates', f'{run}/lrs', rates, self.arrays[f'{run}/lrs'], 1e-6)
        compare.array('momenta', f'{run}/ema_momenta', momenta, self.arrays[f'{run}/ema_momenta'],
                      tolerance['value'])
        key = f'{run}/ema_after{len(history)}'
        compare.array('change by the steps', key, method.average-eye, given[key]-eye,
                      given_tolerance['ema_change_rel_l2'])


# ---- the command --------------------------------------------------------------------------------

def compare_file(path):
    "All settings of a file: their comparisons, and keys that nothing was compared with."
    file = OfficialFile(path)
    cls = case_of(file)
    settings = cls.settings(file)
    comparisons, compared = [], set()
    for setting in settings:
        compare = Comparison(f'{file.method} {setting}'.strip())
        checked = cls(file, setting)
        checked.check(compare)
        comparisons.append(compare)
        compared |= {f'param/{name}' for name in checked.official_names()}
        for name in compare.compared:
            compared |= {name, in_setting(name, setting)}
    left = [key for key in file.arrays if key not in compared]
    return comparisons, left


def in_setting(name, setting):
    "The key that a quantity has behind a setting, such as 'f64/s0.5/logits'."
    double, name = name.startswith('f64/'), name.removeprefix('f64/')
    return ('f64/' if double else '') + (f'{setting}/' if setting else '') + name


def check_file(path):
    "The same as lines to print."
    comparisons, left = compare_file(path)
    lines = []
    for compare in comparisons:
        lines += compare.lines()
    return lines, left


COLUMNS = ('plain CLIP', 'features', 'logits', 'losses', 'gradients', 'change by the steps',
           'logits after the steps', 'float64')


def largest_errors(path, comparisons):
    "How many quantities of a file were compared, and the largest relative error of every kind."
    worst, count = {}, 0
    for compare in comparisons:
        for group,(number, _, deviation, *_) in compare.groups.items():
            column = group if group in COLUMNS else 'others'
            worst[column] = max(worst.get(column, 0.), deviation)
            count += number
    errors = {c: float(f'{worst[c]:.0e}') for c in (*COLUMNS, 'others') if c in worst}
    return dict(file=Path(path).stem, quantities=count, errors=errors)


def table_rows(found):
    "The largest errors of files as lines of a Markdown table."
    lines = ['| method | numbers | '+' | '.join(COLUMNS)+' | others |',
             '|:--|--:|'+'--:|'*(len(COLUMNS)+1)]
    for row in found:
        errors = row['errors']
        cells = [f'{errors[c]:.0e}' if c in errors else '' for c in (*COLUMNS, 'others')]
        lines.append(f'| {row["file"]} | {row["quantities"]} | '+' | '.join(cells)+' |')
    return lines


def main(words):
    "Exit code 0 if every file agrees."
    form = words[0] if words[:1] in (['--table'], ['--json']) else None
    paths = words[1:] if form else words
    if not paths:
        print('usage: python tests/official.py [--table | --json] FILE.npz …')
        return 2
    torch.set_num_threads(1)
    found = []
    for path in paths:
        try:
            comparisons, left = compare_file(path)
        except (Deviation, AssertionError) as deviation:
            print(f'{path}: {deviation}')
            return 1
        except KeyError as lacking:
            print(f'{path}: the file lacks {lacking}')
            return 1
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            print(f'{path}: no file of official numbers ({error})')
            return 1
        except Exception as error:      # of any library, on numbers that no method can take
            print(f'{path}: cannot be computed ({type(error).__name__}: {error})')
            return 1
        found.append(largest_errors(path, comparisons))
        if form:
            continue
        for compare in comparisons:
            print(*compare.lines(), sep='\n')
        if left:
            print(f'{path}: not compared: {", ".join(left)}')
    if form == '--table':
        print(*table_rows(found), sep='\n')
    if form == '--json':
        print(json.dumps(found, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
