"What pages 01 and 1a cannot show well: odd templates and contexts, kinds of models, precisions."
import itertools

import open_clip
import pytest
import torch
from open_clip import IMAGENET_CLASSNAMES
from torch.nn import functional as F
from torch.testing import assert_close

from dra_nb import clip as C
from dra_nb.clip import (cut_padding, embed_image, embed_text, image_features, image_tower,
                         real_tokens, run_blocks, text_features, text_tower, tokenize)
from dra_nb.prompts import (Prompts, encode_image, encode_text, fill, make_prompts, overwrite,
                            word_embeddings)

VISION = dict(image_size=32, patch_size=8, width=64, layers=3, head_width=32)
TEXT = dict(context_length=24, width=48, heads=3, layers=4)
NAMES = ['cat', 'fire engine', 'high-speed_train', 'cow']
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

def build(kind=open_clip.CLIP, text=TEXT, **more):
    torch.manual_seed(0)
    model = kind(20, VISION, text, **more).eval()
    model.tokenizer = open_clip.get_tokenizer('ViT-B-16', context_length=text['context_length'])
    return model

@pytest.fixture(scope='module')
def model():
    return build()

# --- S1: prompts --------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize('pool', ['argmax', 'eos', 'last', 'first'])
def test_plain_prompts_give_what_open_clip_gives(kind, pool):
    m = build(kind, TEXT | dict(pool_type=pool, eos_id=49407))
    prompts = make_prompts(m, NAMES, 'a photo of a {}.')
    assert_close(encode_text(m, prompts), m.encode_text(prompts.tokens))
    assert_close(prompts.tokens, tokenize(m, NAMES), rtol=0, atol=0)

@pytest.mark.parametrize('kind', [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_text_projections_of_every_kind(kind):
    for more in (dict(proj_type='none', width=20, heads=2), dict(proj_bias=True)):
        m = build(kind, TEXT | more)
        prompts = make_prompts(m, NAMES, 'a photo of a {}.')
        assert_close(encode_text(m, prompts), m.encode_text(prompts.tokens))

@pytest.mark.parametrize('template, places', [
    ('* * * * {}.', [1, 2, 3, 4]), ('**** {}.', [1, 2, 3, 4]), ('****{}.', [1, 2, 3, 4]),
    ('{} * *.', [2, 3]), ('{}**.', [2, 3]), ('* {} *.', [1, 3]), ('*{}*', [1, 3]),
    ('* * of a {}.', [1, 2]), ('*, *. {}', [1, 3]), ('a photo of a {}.', [])])
def test_slots_stand_where_the_stars_are(model, template, places):
    prompts = make_prompts(model, ['cat', 'dog'], template)
    assert prompts.slots[0].nonzero()[:, 0].tolist() == places
    assert prompts.n_slots == len(places)
    assert prompts.tokens.shape == prompts.slots.shape == (2, 24)
    assert not (prompts.slots & ~real_tokens(prompts.tokens)).any()

ODD = ['', 'a photo', '{} {}', '{} {x}', '{} {!r}', '{!r}', '{0}', '{:>5}', '{{}}', '{} {{x}}',
       '{} }',
       '{ {}', '}{', None, 3, b'{}']

@pytest.mark.parametrize('template', ODD)
def test_odd_templates_are_refused(model, template):
    for make in (make_prompts, tokenize):
        with pytest.raises(ValueError, match='^template: got') as e:
            make(model, NAMES, template)
        assert '\n' not in str(e.value)

LONG = ('seen on a rainy afternoon in the old harbour of a small town by the sea '
        'among many people at a table ')

@pytest.mark.parametrize('pair', [
    ('Cat', 'cat'), ('fire_engine', 'fire engine'), ('Käse', 'Ka\u0308se'), ('cat ', 'cat'),
    ('cat', '\tcat'), ('fire  engine', 'fire engine'), ('ﬁr', 'fir'), ('ｃat', 'cat'),
    ('cat&amp;dog', 'cat&dog'), ("cat’s", "cat's"), (LONG+'cat', LONG+'dog')])
def test_names_that_end_in_one_sentence_are_refused(model, pair):
    for template in ('a photo of a {}.', '{}'):
        with pytest.raises(ValueError, match='^classnames: ') as e:
            make_prompts(model, ['other', *pair], template)
        assert '\n' not in str(e.value)
        assert all(repr(name) in str(e.value) for name in pair)

def test_names_that_differ_are_not_refused(model):
    names = ['cat', 'cats', 'c at', "cat's", 'cat-', 'cat, dog', 'cat dog', 'Käse', 'Kase',
             'Faces', 'easy faces']
    assert len(tokenize(model, names).unique(dim=0)) == len(names)

def test_identical_names_pass_as_in_imagenet():
    big = build(text=TEXT | dict(context_length=77))
    tokens = tokenize(big, IMAGENET_CLASSNAMES)
    assert len(tokens) == 1000 and len(tokens.unique(dim=0)) == 998

NO_NAMES = ['cat', [], ['cat', ''], ['cat', ' _ '], ['cat', None], ['cat', 3], ['cat', 'M*A*S*H'],
            ['*']]

@pytest.mark.parametrize('names', NO_NAMES)
def test_what_is_no_list_of_names_is_refused(model, names):
    for make in (make_prompts, tokenize):
        with pytest.raises(ValueError, match='^classnames: got') as e:
            make(model, names, 'a photo of a {}.')
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('name', ['＊cat', '&#42; cat', '&ast; cat'])
def test_stars_in_disguise_are_refused_where_there_are_slots(model, name):
    with pytest.raises(ValueError, match='^classnames: got'):
        make_prompts(model, ['dog', name], '* * {}.')

def test_sentences_up_to_the_last_token_fit_and_longer_ones_do_not(model):
    prompts = make_prompts(model, ['cat'], '* '*20 + '{}.')   # with start and end: 24
    assert prompts.tokens[0, -1] == prompts.tokens.max() and prompts.n_slots == 20
    for template in ('* '*21 + '{}.', 'a '*21 + '{}.'):
        with pytest.raises(ValueError, match="of 'cat' takes more than 24 tokens"):
            make_prompts(model, ['cat'], template)

def test_fill_broadcasts_like_a_loop(model):
    prompts = make_prompts(model, NAMES, '* {} * *.')
    x = torch.randn(4, 24, 48)
    for shape in ((3, 48), (1, 3, 48), (4, 3, 48), (5, 1, 3, 48), (5, 4, 3, 48), (2, 5, 1, 3, 48)):
        context = torch.randn(shape)
        found = fill(x, prompts.slots, context)
        lead = torch.broadcast_shapes((4,), shape[:-2])
        assert found.shape == (*lead, 24, 48)
        whole, expected = context.expand(*lead, 3, 48), x.expand(*lead, 24, 48).clone()
        for at in itertools.product(*map(range, lead)):
            expected[at][prompts.slots[at[-1]]] = whole[at]
        assert_close(found, expected, rtol=0, atol=0)

def test_prompts_of_several_templates_and_their_rows(model):
    templates = ('{} * *.', '* {} *.', '* * {}.')
    one = [make_prompts(model, NAMES, t) for t in templates]
    prompts, context = Prompts.stack(one), torch.randn(3, 1, 2, 48)
    found = encode_text(model, prompts, context)
    assert found.shape == (3, 4, 20)
    for k in range(3):
        assert_close(found[k], encode_text(model, one[k], context[k, 0]), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0])
    assert_close(encode_text(model, prompts[rows], context[rows]), found[rows], rtol=1e-4,
                 atol=1e-5)
    assert prompts[rows].n_slots == 2
    short = prompts.cut_padding()
    assert short.tokens.shape[-1] < 24
    assert_close(encode_text(model, short, context), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='^slots: got 1 to 2'):
        encode_text(model, Prompts.stack([one[0], make_prompts(model, NAMES, '* {}.')]),
                    context[:2])

WRONG = [None, (48,), (2, 48), (4, 48), (3, 47), (0, 48), (3, 3, 48), (5, 2, 3, 48)]

@pytest.mark.parametrize('shape', WRONG)
def test_contexts_that_do_not_fit_are_refused(model, shape):
    prompts = make_prompts(model, NAMES, '* * * {}.')
    with pytest.raises(ValueError, match='^context: got') as e:
        encode_text(model, prompts, None if shape is None else torch.randn(shape))
    assert '\n' not in str(e.value)

def test_a_context_for_sentences_without_slots_is_refused(model):
    with pytest.raises(ValueError, match='^context: got'):
        encode_text(model, make_prompts(model, NAMES, 'a {}.'), torch.randn(1, 48))

def test_word_embeddings_start_a_context_where_the_words_stood(model):
    context = word_embeddings(model, 'a photo of a')
    learned = encode_text(model, make_prompts(model, NAMES, '* * * * {}.'), context)
    assert_close(learned, model.encode_text(tokenize(model, NAMES)), rtol=1e-4, atol=1e-5)

def test_prompts_of_a_model_without_contents():
    with torch.device('meta'):
        m = open_clip.CLIP(20, VISION, TEXT)
    m.tokenizer = open_clip.get_tokenizer('ViT-B-16', context_length=24)
    prompts = make_prompts(m, NAMES, '* * {}.')
    context = torch.empty(5, 1, 2, 48, device='meta')
    assert encode_text(m, prompts, context).shape == (5, 4, 20)
    assert encode_image(m, torch.empty(5, 3, 32, 32, device='meta')).shape == (5, 20)

# --- S2, S3: blocks and extra tokens ------------------------------------------------------------

def test_before_sees_every_block_once_and_numbers_it(model):
    x = torch.randn(2, 5, 48)
    for first in (1, 4):
        seen = []
        def before(i, t):
            seen.append((i, t.shape))
            return t + i
        out = run_blocks(text_tower(model).blocks, x, before=before, first=first)
        assert [i for i,_ in seen] == [first, first+1, first+2, first+3]
        y = x
        for i,block in enumerate(text_tower(model).blocks, first):
            y = block(y + i)
        assert_close(out, y)

WHERE = [slice(1, 3), slice(-2, None), [1, 2], [4, 0], torch.tensor([1, 3])]

@pytest.mark.parametrize('where', WHERE)
def test_overwrite_writes_from_the_second_block_on(where):
    values, x = torch.randn(3, 2, 8), torch.randn(6, 5, 8)
    before = overwrite(values, where)
    for i in (1, 4, 5):
        assert before(i, x) is x
    for i in (2, 3):
        expected = x.clone()
        expected[:, where] = values[i-1]
        untouched = x.clone()
        assert_close(before(i, x), expected)
        assert_close(x, untouched, rtol=0, atol=0)

def test_overwrite_takes_values_of_every_sample_and_lists(model):
    values = [torch.randn(6, 2, 8) for _ in range(3)]
    x = torch.randn(6, 5, 8)
    assert_close(overwrite(values, slice(1, 3))(3, x)[:, 1:3], values[2])

def test_extra_tokens_are_normalised_have_no_position_and_change_the_feature(model):
    images, extra = torch.randn(3, 3, 32, 32), torch.randn(2, 64)
    x = embed_image(model, images, extra)
    assert_close(x[:, :17], embed_image(model, images))
    assert_close(x[:, 17:], model.visual.ln_pre(extra).expand(3, 2, 64))
    assert_close(encode_image(model, images, extra[:0]), model.encode_image(images))
    assert (encode_image(model, images, extra)-model.encode_image(images)).norm() > 1e-3

def test_gradients_reach_everything_that_is_put_in(model):
    frozen = build().requires_grad_(False)
    prompts = make_prompts(frozen, NAMES, '* * of a {}.')
    text, image = torch.randn(4, 2, 48), torch.randn(3, 2, 64)
    text.requires_grad_()
    image.requires_grad_()
    w = encode_text(frozen, prompts, text[0], overwrite(text, slice(1, 3)))
    x = encode_image(frozen, torch.randn(3, 3, 32, 32), image[0], overwrite(image, slice(-2, None)))
    (F.normalize(x, dim=-1) @ F.normalize(w, dim=-1).T)[:, 0].sum().backward()
    assert (text.grad.flatten(1).norm(dim=1) > 0).all()
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in frozen.parameters())

# --- precision, kinds of models -----------------------------------------------------------------

@pytest.mark.parametrize('kind', [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize('dtype', DTYPES)
def test_every_precision_gives_what_open_clip_gives(kind, dtype):
    m = build(kind).to(dtype)
    prompts, images = make_prompts(m, NAMES, 'a photo of a {}.'), torch.randn(3, 3, 32, 32)
    x, w = encode_image(m, images), encode_text(m, prompts)
    assert_close(x, m.encode_image(images.to(dtype)))
    assert_close(w, m.encode_text(prompts.tokens))
    assert_close(image_features(m, images), x)
    assert_close(text_features(m, prompts.tokens), w)
    logits = C.class_logits(x, w, m.logit_scale)
    assert logits.dtype == dtype and logits.isfinite().all()
    learned = make_prompts(m, NAMES, '* * {}.')
    deep = overwrite(torch.randn(3, 2, 48), slice(1, 3))
    out = encode_text(m, learned, torch.randn(5, 1, 2, 48), deep)
    assert out.shape == (5, 4, 20) and out.isfinite().all()

@pytest.mark.parametrize('precision', ['fp16', 'bf16', 'pure_fp16', 'pure_bf16'])
def test_the_half_precisions_of_open_clip(precision):
    m = open_clip.create_model('ViT-S-32-alt', precision=precision)
    m.tokenizer = open_clip.get_tokenizer('ViT-S-32-alt')
    images, prompts = torch.randn(1, 3, 224, 224), make_prompts(m, ['cat'])
    weight = m.visual.conv1.weight.dtype
    assert_close(encode_image(m, images), m.encode_image(images.to(weight)))
    assert_close(encode_text(m, prompts), m.encode_text(prompts.tokens))

def test_autocast_on_float_weights(model):
    prompts, images = make_prompts(model, NAMES, '* * {}.'), torch.randn(3, 3, 32, 32)
    context, extra = torch.randn(2, 48, requires_grad=True), torch.randn(2, 64, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        w = encode_text(model, prompts, context, overwrite([context]*3, slice(1, 3)))
        x = encode_image(model, images, extra, overwrite([extra]*3, slice(-2, None)))
        loss = C.class_logits(x, w, model.logit_scale).float().logsumexp(1).sum()
    loss.backward()
    assert context.grad.norm() > 0 and extra.grad.norm() > 0

def test_padding_is_found_by_the_end_and_not_by_zeros(model):
    tokens = tokenize(model, ['tram!(sic)', 'a'])
    assert (tokens[0, :11] == 0).any()
    for row, real in zip(tokens.tolist(), real_tokens(tokens)):
        assert real.sum() == row.index(max(row))+1
    assert_close(text_features(model, cut_padding(tokens)), model.encode_text(tokens), rtol=1e-4,
                 atol=1e-5)
    longest = int(real_tokens(tokens).sum(1).max())
    assert cut_padding(torch.stack([tokens, tokens])).shape == (2, 2, longest)

SHAPES = [('ViT-L-14-quickgelu', (257, 1024), (77, 768), 768, (24, 12)),
          ('ViT-B-32', (50, 768), (77, 512), 512, (12, 12)),
          ('ViT-B-16-plus-240', (226, 896), (77, 640), 640, (12, 12))]

@pytest.mark.parametrize('name, image, text, dim, blocks', SHAPES)
def test_shapes_on_the_meta_device(name, image, text, dim, blocks):
    with torch.device('meta'):
        m = open_clip.create_model(name, device='meta')
    images = torch.empty(2, 3, *m.visual.image_size, device='meta')
    tokens = torch.zeros(3, 77, dtype=torch.long, device='meta')
    assert embed_image(m, images).shape[1:] == image and embed_text(m, tokens).shape[1:] == text
    assert image_features(m, images).shape == (2, dim)
    assert text_features(m, tokens).shape == (3, dim)
    assert (len(image_tower(m).blocks), len(text_tower(m).blocks)) == blocks

UNSUPPORTED = [('ViT-B-16-SigLIP', image_tower), ('RN50-quickgelu', image_tower),
               ('coca_ViT-B-32', text_tower)]

@pytest.mark.parametrize('name, tower', UNSUPPORTED)
def test_towers_that_cannot_be_adapted_are_refused(name, tower):
    with torch.device('meta'):
        m = open_clip.create_model(name, device='meta')
    with pytest.raises(ValueError, match='^model: .*supported'):
        tower(m)
