"""Numbers that must not change when code is only moved or made faster.

`before.safetensors` was stored before the code was cut into rooms (commit 47912b2): outputs,
regularizers and gradients of adapter and DRA modules with given noise, and losses and logits of a
tiny CLIP that carries them, computed in double precision and stored in single. `zero_shot.json` was
stored with the weights of version 0.2: right answers of glyph-clip on the test images of the
embedded sets. The few-shot draws are pinned in test_public.py."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close

from dra_nb.adapter import Adapter, AdapterConfig
from dra_nb.clip import class_logits, load_clip, real_tokens
from dra_nb.data import base_new, load_dataset
from dra_nb.dra import DRA, DRAConfig, adapters, add_adapter, add_dra, regularization, set_valid
from dra_nb.evaluation import accuracy
from dra_nb.weights import GlyphClipConfig, build_glyph_clip

FIXTURES = Path(__file__).parent/'fixtures'
BEFORE = load_file(FIXTURES/'before.safetensors')
ZERO_SHOT = json.loads((FIXTURES/'zero_shot.json').read_text())
WIDTH, RANK, BATCH, TOKENS = 24, 8, 3, 9
OURS = replace(DRAConfig.recommended(), scale=.3)       # as it was when the file was made
PAPER = DRAConfig.paper()
VARIANTS = dict(
    adapter_recommended=AdapterConfig.recommended(), adapter_paper=AdapterConfig.paper(),
    dra_recommended=OURS, dra_paper=PAPER,
    dra_soft=replace(OURS, order='soft-sort'),
    dra_real=replace(OURS, padding='real', reg_reduction='sum'),      # see `as_stored`
    dra_r=replace(PAPER, attention_scale='r', rescale='inverse_kept', reg_reduction='mean'),
    dra_mixed=replace(PAPER, reg_gradient='rescaled'),
    dra_noreg=replace(OURS, lambda_text=0., lambda_image=0.))


def numbers(seed, shape, scale=1.):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)*scale)


def fill(module, seed, scale):
    "Weights that numpy's frozen generator gives."
    with torch.no_grad():
        for i,(_, p) in enumerate(sorted(module.named_parameters())):
            p.copy_(numbers(1000*seed+i, tuple(p.shape), scale))


def same(name, value):
    # double precision on both sides: what differs is the single precision of the file
    assert_close(value.float(), BEFORE[name], rtol=1e-5, atol=1e-7, msg=lambda m: f'{name}: {m}')


def as_stored(reg, m, tokens):
    "The mean as it was when the file was made: padding counted among the tokens."
    return reg/(tokens*m.d)


@pytest.mark.parametrize('name', VARIANTS)
def test_module(name):
    "One module with given weights, input and noise: output, regularizer and all gradients."
    config = replace(VARIANTS[name], rank=RANK)
    is_dra = isinstance(config, DRAConfig)
    m = (DRA if is_dra else Adapter)(WIDTH, config).double().train()
    fill(m, 1, .4)
    m.tower = 'text'
    x = numbers(2, (BATCH, TOKENS, WIDTH)).requires_grad_()
    if is_dra:
        m.reg_weight = config.lambda_text
        noise = numbers(4, (BATCH, TOKENS)), numbers(5, (BATCH, RANK))
        mask = torch.arange(TOKENS) < torch.tensor([[9], [6], [4]])
        y = m(x, mask, noise)
    else:
        y = m(x)
    reg = y.new_zeros(()) if m.reg is None else m.reg
    if name == 'dra_real':
        reg = as_stored(reg, m, TOKENS)
    ((y*numbers(3, (BATCH, TOKENS, WIDTH))).sum()+3*reg).backward()
    same(f'module/{name}/out', y)
    same(f'module/{name}/reg', reg)
    same(f'module/{name}/grad_x', x.grad)
    for n,p in m.named_parameters():
        same(f'module/{name}/grad/{n}', torch.zeros_like(p) if p.grad is None else p.grad)
    same(f'module/{name}/test', m.eval()(x))


def clip():
    shape = GlyphClipConfig(embed_dim=16, width=24, layers=4, head_width=8, context=16,
                            image_size=32)
    model = build_glyph_clip(shape).eval()
    with torch.no_grad():
        for i,(n, p) in enumerate(sorted(model.named_parameters())):
            if n == 'logit_scale':
                p.fill_(3.)
                continue
            base = 1. if p.ndim == 1 and n.endswith('weight') else 0.
            p.copy_(base+numbers(7000+i, tuple(p.shape), .15))
    return model.double()


@pytest.mark.parametrize('name', VARIANTS)
def test_model(name):
    "A whole CLIP that carries them, without noise: logits in training and in test, both losses."
    config = replace(VARIANTS[name], rank=RANK, start=2)
    model = clip()
    if isinstance(config, DRAConfig):
        add_dra(model, replace(config, noise='none'))
    else:
        add_adapter(model, config)
    model.double()
    for i,m in enumerate(adapters(model).values()):
        fill(m, 50+i, .3)
        m.train()
    images = numbers(8, (4, 3, 32, 32))
    names = 'cat', 'fire engine', 'high-speed train'
    tokens = model.tokenizer([f'a photo of a {n}.' for n in names])
    with set_valid(model, real_tokens(tokens)):
        text = model.encode_text(tokens)
    logits = class_logits(model.encode_image(images), text, model.logit_scale)
    same(f'model/{name}/logits', logits)
    same(f'model/{name}/ce', F.cross_entropy(logits, torch.tensor([0, 1, 2, 1])))
    reg = regularization(model)
    if name == 'dra_real':
        count = dict(image=len(model.visual.positional_embedding), text=tokens.shape[1])
        reg = sum(as_stored(m.reg, m, count[m.tower]) for m in adapters(model).values())
    same(f'model/{name}/reg', reg)
    model.eval()
    test = class_logits(model.encode_image(images), model.encode_text(tokens), model.logit_scale)
    same(f'model/{name}/test_logits', test)


@pytest.mark.parametrize('name', ['vehicles', 'faces'])
def test_zero_shot(name):
    "Right answers on all test images; a tie at the last digit may turn one."
    model = load_clip('glyph-clip', device='cpu')
    for part,data in zip(('base', 'new'), base_new(load_dataset(name))):
        right = accuracy(model, data.test, data.classnames, data.template)*len(data.test)/100
        assert abs(right-ZERO_SHOT[f'{name}/{part}']) <= 1
