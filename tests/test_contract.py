"""What every compared method must keep, whatever it does: one table of methods, one list of properties.

`check_method` holds the properties that an author checks, too; the others are here. A new method is
one more row; nothing here knows what a method computes."""
import copy
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import torch
from torch.testing import assert_close

from conftest import save_tiny_clip
from dra_nb.attach import attached, detach, set_step
from dra_nb.contract import (NAMES, OTHERS, PROPERTIES, SHORT, TEMPLATE, check_method,
                             tiny_open_clip, tiny_shots)
from dra_nb.evaluation import accuracy, predictions
from dra_nb.files import write_tensors
from dra_nb.methods import (METHODS, Method, build_method, find_method, load_method,
                            saved_facts)
from dra_nb.recipes import TrainConfig
from dra_nb.training import Callback, TrainingDiverged, fit
from dra_nb.weights import GlyphClipConfig, build_glyph_clip, load_clip, meta_clip

# name → parts of names of trained tensors that may stay without a gradient
HARD_ORDER = 'W_t', 'W_c'                 # it passes none to the scores
TRAINED = {
    'adapter': (),
    'dra': HARD_ORDER,
    'dra-paper': HARD_ORDER,
    'dra-control': HARD_ORDER,
    'dra-plus': HARD_ORDER,
    'coop': (),
    'maple': (),
    'mma': (),
    'kgcoop': (),
    'cocoop': (),
    'tcp': (),
    'lfa': (),
    'metaprompt': (),
    'metaprompt-intended': (),
    'proda': (),
    'promptsrc': (),
    'clip-lora': (),
    'clip-adapter': (),
    'tip-adapter-f': (),
}
SHOTS_ONLY = ('tip-adapter',)             # they keep the shots, and train nothing
BY_SHOTS = ('tip-adapter-f',)             # the shots decide how much is trained: nothing before
LEARNING = [*TRAINED, *SHOTS_ONLY]
ALL = ['zero-shot', *LEARNING]

# trained numbers on ViT-B/16, as the papers or their code have them
PUBLISHED = {'zero-shot': 0, 'adapter': 666_112, 'dra': 716_800,
             'dra-control': 716_800, 'dra-plus': 699_904, 'coop': 2_048,
             'maple': 3_555_072, 'mma': 674_560, 'kgcoop': 2_048, 'cocoop': 35_360,
             'tcp': 331_904,
             'lfa': 262_144, 'metaprompt': 30_720, 'proda': 262_144, 'promptsrc': 46_080,
             'clip-lora': 184_320, 'clip-adapter': 131_072}


@pytest.fixture(scope='module')
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def shots():
    return tiny_shots()


def built(name, seed=1, kind=open_clip.CLIP):
    method = build_method(name, tiny_open_clip(kind), seed)
    return method.eval()


def short_training(method, shots, seed=1, **kwargs):
    return fit(method, shots, SHORT, seed, bar=False, **kwargs)


@torch.no_grad()
def logits(method, images, names=NAMES, seen=True):
    with method.testing(names, TEMPLATE, seen):
        return method.logits(images)


def test_table_is_complete():
    "A method that is registered is held to the contract."
    assert {find_method(name)[0].name for name in ALL} == set(METHODS)


@pytest.mark.parametrize('name', ALL)
def test_built_for_a_data_set(name):
    "Settings and recipe are those that bench takes for this set and protocol."
    method = build_method(name, tiny_open_clip(), dataset='eurosat', protocol='cross')
    cls, preset = find_method(name)
    config, train = cls.recipe('cross', 'eurosat', 'tiny', preset)
    assert method.config == config and method.own_recipe('eurosat') == train


@pytest.mark.parametrize('kind', [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize('name', ALL)
def test_properties(name, kind):
    "Those that an author of a method checks, on both of open_clip's model classes."
    make_clip = partial(tiny_open_clip, kind)
    report = check_method(name, excused=TRAINED.get(name, ()), make_clip=make_clip)
    assert len(report) == len(PROPERTIES) and not report.failed, report


@pytest.mark.parametrize('name', SHOTS_ONLY)
def test_shots_without_training(name, shots, images):
    "The shots change the logits of their classes and of no others."
    method = built(name)
    seen, unseen = logits(method, images), logits(method, images, OTHERS, seen=False)
    short_training(method, shots)
    assert not method.trained() and not method.training
    assert not torch.equal(logits(method, images), seen)
    assert torch.equal(logits(method, images, OTHERS, seen=False), unseen)


@pytest.mark.parametrize('name', ALL)
def test_detach_takes_off_everything_or_nothing(name, images):
    "What cannot be taken off without the method is left whole."
    method = built(name)
    before, names = logits(method, images), list(method.trained())
    try:
        detach(method.model)
        assert not attached(method.model)
    except ValueError as refused:
        assert 'allowed after method.remove()' in str(refused)
        assert torch.equal(logits(method, images), before) and list(method.trained()) == names
        method.remove()
    assert all(p.requires_grad for p in method.model.parameters())


@pytest.mark.parametrize('name', ('cocoop', 'tcp'))
def test_a_narrow_joint_space(name):
    "The net between is narrower than its ends, but never of width zero."
    shape = GlyphClipConfig(embed_dim=3, width=16, layers=9, head_width=16, image_size=32)
    method = build_method(name, build_glyph_clip(shape).eval())
    method.set_classes(NAMES, TEMPLATE)
    found = method.logits(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, len(NAMES)) and found.isfinite().all()


@pytest.mark.parametrize('name', ALL)
def test_names_one_by_one(name, images):
    "An iterator counts as the list of what it gives, for every sentence a method makes of it."
    method = built(name)
    assert torch.equal(logits(method, images, iter(NAMES)), logits(method, images))
    for wrong, said in ((iter(['cat', 'Cat']), 'one and the same'), (NAMES[0], 'the text')):
        with pytest.raises(ValueError, match=said):
            logits(method, images, wrong)


@pytest.mark.parametrize('name', ALL)
def test_a_method_that_fails_leaves_the_clip_alone(name, images):
    "Whether the CLIP is of another kind, or the method breaks off after it added what it adds."
    cls, _ = find_method(name)

    class Broken(cls):
        def add(self, generator):
            super().add(generator)
            raise ValueError('broken')

    image = dict(layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    text = dict(context_length=77, width=32, heads=2, layers=2)
    resnet = open_clip.CLIP(32, image, text)
    for model, kind, said in (tiny_open_clip(), Broken, 'broken'), (resnet, cls, 'ModifiedResNet'):
        names, flags = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
        hooks = [len(m._forward_pre_hooks)+len(m._forward_hooks) for m in model.modules()]
        with pytest.raises(ValueError, match=said):
            kind(model)
        assert list(model.state_dict()) == names
        assert [p.requires_grad for p in model.parameters()] == flags
        after = [len(m._forward_pre_hooks)+len(m._forward_hooks) for m in model.modules()]
        assert after == hooks


def test_saved_facts(tmp_path):
    "Those that are given are there beside the method's own."
    method = built('coop')
    method.save(tmp_path, dict(classnames=NAMES, template=TEMPLATE))
    facts = saved_facts(tmp_path)
    assert facts['classnames'] == NAMES and facts['method'] == 'coop'


@pytest.mark.parametrize('name', LEARNING)
def test_saved_without_facts_the_classes_stay_known(name, shots, images, tmp_path):
    "A method that was loaded knows the classes that it knew, and scores others as before."
    method = built(name)
    short_training(method, shots)
    method.save(tmp_path)
    loaded = load_method(tmp_path, tiny_open_clip())
    assert (loaded.trained_on, loaded.trained_set) == (NAMES, 'toy')
    assert loaded.trained_template == method.template_for(shots)
    for names in NAMES, OTHERS, NAMES[::-1]:
        if names == NAMES[::-1] and method.by_place:
            for one in method, loaded:
                with pytest.raises(ValueError, match='those of the training in another order'):
                    predictions(one, shots.test, names)
            continue
        seen = method.knows(names)
        assert seen == (names != OTHERS) and loaded.knows(names) == seen
        assert torch.equal(logits(loaded, images, names, loaded.knows(names)),
                           logits(method, images, names, seen))


def test_features_of_changed_weights_are_computed_anew(images):
    "After `load_state_dict`; and where somebody wants gradients."
    method = built('coop')
    state = {n: t.clone() for n,t in method.state_dict().items()}
    before = logits(method, images)
    method.set_classes(NAMES, TEMPLATE)
    for _ in range(2):
        method.logits(images).sum().backward()
    with torch.no_grad():
        method.logits(images)
        method.context.mul_(2.)
        method.load_state_dict({**state, 'context': 3*state['context']})
        changed = method.logits(images)
    assert_close(changed, logits(method, images))
    assert (changed-before).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['dra-paper', 'dra', 'lfa'])
@pytest.mark.parametrize('protocol', ['base-to-new', 'cross'])
def test_the_recipe_follows_the_settings(name, protocol, tmp_path):
    "Of a method that was loaded, or built from settings, it is that of the preset."
    clip = tiny_open_clip()
    clip.clip_name = 'glyph-clip'
    cls, preset = find_method(name)
    config, train = cls.recipe(protocol, '', 'glyph-clip', preset)
    method = build_method(name, clip, protocol=protocol)
    assert method.own_recipe() == train
    method.save(tmp_path)
    method.remove()
    loaded = load_method(tmp_path, clip)
    assert loaded.own_recipe() == train and loaded.preset_name == preset
    facts = saved_facts(tmp_path)
    write_tensors(tmp_path/'weights.safetensors', loaded.state(),      # as older versions did
                  dict(dra_nb={k: v for k,v in facts.items() if k not in ('preset', 'protocol')}))
    loaded.remove()
    old = load_method(tmp_path, clip)
    assert old.own_recipe(protocol=protocol) == train
    old.remove()
    made = build_method(cls.name, clip, config=config, protocol=protocol)
    assert made.preset_name == preset and made.own_recipe() == train


@pytest.mark.parametrize('name', ALL)
def test_logits_before_classes_are_one_line(name, images):
    with pytest.raises(ValueError, match='classnames: got none, allowed after set_classes'):
        built(name).logits(images)


@pytest.mark.parametrize('kind, said', [
    (lambda self, images, labels: self.cross_entropy(self.logits(images), labels),
     'losses: Own gives a Tensor, allowed is a dict'),
    (lambda self, images, labels: dict(ce=self.cross_entropy(self.logits(images), labels)),
     r'losses: those of Own do not depend on what is trained \(factor\)')])
def test_likely_mistakes_are_one_line(kind, said, shots):
    class Own(Method):
        losses = kind

        def add(self, generator):
            self.factor = torch.nn.Parameter(torch.ones(()))

    with pytest.raises(ValueError, match=said) as error:
        short_training(Own(tiny_open_clip()), shots)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('second', ['dra', 'coop', 'zero-shot'])
def test_a_clip_belongs_to_one_method(second, images):
    "Also where the first one attaches nothing; the refused second one changes nothing."
    first = built('coop')
    before, names = logits(first, images), list(first.trained())
    with pytest.raises(ValueError, match='another method has, allowed after method.remove'):
        build_method(second, first.model)
    assert torch.equal(logits(first, images), before) and list(first.trained()) == names
    first.remove()
    build_method(second, first.model)


def test_loaded_on_the_clip_it_was_trained_on(tmp_path):
    "The file of the CLIP decides, wherever it is; a CLIP of another file stays as it is."
    one = save_tiny_clip(tmp_path/'one.safetensors', 0)
    other = save_tiny_clip(tmp_path/'other.safetensors', 1)
    build_method('adapter', load_clip('glyph-clip', one)).save(tmp_path/'weights')
    moved = one.rename(tmp_path/'moved.safetensors')
    load_method(tmp_path/'weights', load_clip('glyph-clip', moved))
    model = load_clip('glyph-clip', other)
    with pytest.raises(ValueError, match='trained on glyph-clip .* same weights'):
        load_method(tmp_path/'weights', model)
    assert not attached(model)


@pytest.mark.parametrize('name', LEARNING)
def test_what_does_not_fit_leaves_the_clip_alone(name, tmp_path, shots):
    method = built(name)
    if name in (*BY_SHOTS, *SHOTS_ONLY):
        short_training(method, shots)
    method.save(tmp_path)
    torch.manual_seed(0)
    image = dict(image_size=32, patch_size=16, width=64, layers=12, head_width=16)
    text = dict(context_length=77, width=64, heads=4, layers=12)
    wide = open_clip.CLIP(48, image, text).eval()
    wide.tokenizer = method.model.tokenizer
    flags = [p.requires_grad for p in wide.parameters()]
    names = list(wide.state_dict())
    with pytest.raises(ValueError, match='needed is') as e:
        load_method(tmp_path, wide)
    assert '\n' not in str(e.value)
    assert list(wide.state_dict()) == names and [p.requires_grad for p in wide.parameters()] == flags


@pytest.mark.parametrize('name', TRAINED)
def test_looking_leaves_no_trace(name, shots, images):
    "Evaluating in the middle of training, on these classes and on others, changes nothing."
    class Look(Callback):
        def before_fit(self, trainer):
            self.after_step(trainer)
        def after_step(self, trainer):
            method = trainer.method
            names = (*method.of_classes, 'truncate_text')
            before = [getattr(method, n) for n in names]
            modes = [m.training for m in method.modules()]
            accuracy(method, shots.test, NAMES)
            logits(method, images, OTHERS, seen=False)
            assert all(getattr(method, n) is value for n,value in zip(names, before))
            assert [m.training for m in method.modules()] == modes

    plain, watched = built(name), built(name)
    history = short_training(plain, shots)
    assert [h['epoch'] for h in history] == [1, 2, 3] and all(h['loss'] > 0 for h in history)
    assert not plain.training
    assert short_training(watched, shots, callbacks=[Look()]) == history
    for key,value in plain.state().items():
        assert torch.equal(watched.state()[key], value), key


@pytest.mark.parametrize('name', TRAINED)
def test_training_by_hand(name, shots, images):
    "Logits in evaluation mode are those of the weights in hand, also after steps of one's own."
    method = built(name)
    if name in BY_SHOTS:
        short_training(method, shots)
    method.set_classes(NAMES, TEMPLATE)
    with torch.no_grad():
        before = method.logits(images)
        method.train()
        for p in method.trained().values():
            p.add_(.1)
        method.eval()
        now = method.logits(images)
    assert not torch.equal(now, before)
    assert torch.equal(now, logits(method, images))


@pytest.mark.parametrize('name', ALL)
def test_both_model_classes(name, shots, images, tmp_path):
    "open_clip keeps the text tower in the model or in a module of its own; weights fit both."
    state = tiny_open_clip().state_dict()
    other = tiny_open_clip(open_clip.CustomTextCLIP)
    renamed = {k: state[k] if k in state else state[k.removeprefix('text.')]
               for k in other.state_dict()}
    other.load_state_dict(renamed)
    one = built(name)
    if name in LEARNING:
        short_training(one, shots)
    one.save(tmp_path)
    assert_close(logits(load_method(tmp_path, other), images), logits(one, images),
                 atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name, count', PUBLISHED.items())
def test_published_number_of_parameters(name, count):
    method = build_method(name, meta_clip('ViT-B-16-quickgelu'))
    assert sum(p.numel() for p in method.trained().values()) == count


@pytest.mark.parametrize('name, count', dict(maple=1_185_024, dra=537_600).items())
def test_published_number_across_data_sets(name, count):
    clip = meta_clip('ViT-B-16-quickgelu')
    config, _ = find_method(name)[0].recipe('cross', 'imagenet', clip.clip_name)
    method = build_method(name, clip, config=config)
    assert sum(p.numel() for p in method.trained().values()) == count


@pytest.mark.parametrize('name', ALL)
def test_another_backbone(name):
    "Widths come from the model: classes, a loss and its gradients on ViT-L/14, without memory."
    clip = meta_clip('ViT-L-14-quickgelu')
    method = build_method(name, clip)
    keys = torch.zeros(4, clip.visual.output_dim, device='meta')
    method.make_room(dict(keys=keys, values=torch.zeros(4, len(NAMES), device='meta')))
    method.train()
    method.set_classes(NAMES, TEMPLATE)
    method.draw((1, 0))
    images = torch.zeros(2, 3, clip.image_size, clip.image_size, device='meta')
    terms = method.losses(images, torch.zeros(2, dtype=torch.int64, device='meta'))
    loss = sum(terms.values())
    assert loss.shape == ()
    if name in TRAINED:
        loss.backward()
        excused = TRAINED[name]
        for n,p in method.trained().items():
            assert p.grad is not None or any(part in excused for part in n.split('.')), n
    with torch.no_grad():
        assert method.eval().logits(images).shape == (2, len(NAMES))


@pytest.mark.parametrize('name', METHODS)
def test_recipes_are_functions_of_names(name):
    "For every protocol and kind of CLIP, without a model."
    cls = METHODS[name]
    for protocol in ('base-to-new', 'cross'):
        for clip in ('glyph-clip', 'ViT-B-16-quickgelu'):
            for dataset in ('vehicles', 'general', 'oxford_pets', 'imagenet', 'my pictures'):
                config, train = cls.recipe(protocol, dataset, clip)
                assert isinstance(train, TrainConfig)
                assert cls.Config is None or isinstance(config, cls.Config)
                assert cls.recipe(protocol, dataset, clip) == (config, train)


@pytest.mark.parametrize('name', TRAINED)
def test_copies_are_independent(name, shots, images):
    method = built(name)
    if name in BY_SHOTS:
        short_training(method, shots)
    twin = copy.deepcopy(method)
    before = logits(method, images)
    assert torch.equal(logits(twin, images), before)
    with torch.no_grad():
        for p in twin.trained().values():
            p.add_(.5)
    assert torch.equal(logits(method, images), before)
    assert not torch.equal(logits(twin, images), before)


class Killed(Exception):
    pass


class Kill(Callback):
    "End a run in the middle, before the checkpoint of that step is written."
    def after_step(self, trainer):
        if trainer.step == max(2, trainer.steps-2):
            raise Killed


@pytest.mark.parametrize('name', TRAINED)
def test_a_run_goes_on_after_an_interruption(name, shots, tmp_path):
    "To the bit: weights, whatever else was learned, and history; a finished run stays as it is."
    whole = built(name)
    history = short_training(whole, shots)
    killed = built(name)
    file = tmp_path/'run.pt'
    with pytest.raises(Killed):
        short_training(killed, shots, checkpoint=file, every=1, callbacks=[Kill()])
    steps = []
    class Count(Callback):
        def after_step(self, trainer):
            steps.append(trainer.step)
    for _ in range(2):
        resumed = built(name)
        assert short_training(resumed, shots, checkpoint=file, every=1,
                              callbacks=[Count()]) == history
        for key,value in whole.state().items():
            assert torch.equal(resumed.state()[key], value), key
    assert steps == sorted(set(steps)) and steps[0] > 1


class Break(Callback):
    "Put NaN into all that the fourth step changed."
    def after_step(self, trainer):
        if trainer.step == 3:
            self.good = {n: t.detach().clone() for n,t in trainer.method.state().items()}
        if trainer.step == 4:
            for t in (*trainer.trained.values(), *trainer.method.run_state().values()):
                t.data.fill_(float('nan'))


@pytest.mark.parametrize('name', TRAINED)
def test_the_last_good_weights_can_be_read(name, shots, tmp_path):
    "After a run that diverged: all that was learned is that of the last look."
    method, watch = built(name), Break()
    config = replace(SHORT, epochs=5, batch_size=8)       # one step an epoch
    with pytest.raises(TrainingDiverged, match='at step 4'):
        fit(method, shots, config, callbacks=[watch], bar=False)
    method.save(tmp_path)
    loaded = load_method(tmp_path, tiny_open_clip())
    for key,value in watch.good.items():
        assert torch.equal(loaded.state()[key], value), key


@pytest.mark.parametrize('name', LEARNING)
def test_half_precision(name, shots, images):
    "A step and a test under bf16 autocast: near those of full precision."
    losses = {}
    for amp in ('off', 'bf16'):
        method = built(name)
        config = replace(SHORT, epochs=1, batch_size=8, amp=amp)
        losses[amp] = fit(method, shots, config, bar=False)[0]['loss']
    assert_close(losses['bf16'], losses['off'], atol=.05, rtol=.05)
    half, full = (predictions(method, shots.test, NAMES, TEMPLATE, amp=amp, probabilities=True)
                  for amp in ('bf16', 'off'))
    assert not torch.equal(half, full)
    assert_close(half, full, atol=.05, rtol=0)
    assert all(p.isfinite().all() for p in method.trained().values())


@pytest.mark.parametrize('name', TRAINED)
def test_chunks_of_prompts_give_the_same_gradients(name, images):
    "Some class prompts at a time, each part computed again backwards: equal losses and gradients."
    labels = torch.arange(4) % len(NAMES)
    # adapters that learn something: with scale 0.001 no difference would show
    config = find_method(name)[0].recipe(clip='glyph-clip')[0] if name in ('adapter', 'dra') else None

    def gradients(chunk):
        method = build_method(name, tiny_open_clip(), config=config).train()
        method.make_room(dict(keys=torch.zeros(4, 32), values=torch.zeros(4, len(NAMES))))
        method.set_classes(NAMES, TEMPLATE)
        method.text_chunk = chunk
        set_step(method.model, (1, 0))
        torch.manual_seed(0)
        terms = method.losses(images[:4], labels)
        parameters = list(method.trained().values())
        found = torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
        return terms, dict(zip(method.trained(), found))

    terms, whole = gradients(None)
    assert any(g is not None for g in whole.values())
    for chunk in (1, 2, 3):
        parts, found = gradients(chunk)
        for key, term in terms.items():
            assert_close(parts[key], term, rtol=1e-5, atol=1e-6)
        for n, g in whole.items():
            assert (g is None) == (found[n] is None), n
            if g is not None:
                assert (found[n]-g).norm() <= 1e-5*g.norm()+1e-7, (n, chunk)
