"Equations 9 to 16 on input that no page shows: padding only, numbers nobody should trust."
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close

from dra_nb.adapter import AdapterConfig
from dra_nb.channels import channel_scores
from dra_nb.masking import kept_channels, rank_mask, rescaling, soft_rank_mask, token_groups
from dra_nb.scoring import token_scores
from dra_nb.sorting import places, soft_permutation


def gen(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('order', [[0, 0, 1], [0, 1, 3], [-1, 0, 1], [0., 1., 2.], [2, 2, 2]])
def test_places_refuse_what_is_no_permutation(order):
    wrong = torch.tensor(order)
    right = torch.arange(3)[None]
    for call in (lambda: places(wrong), lambda: rank_mask(wrong[None], right, (1., .5)),
                 lambda: rank_mask(right, wrong[None], (1., .5))):
        with pytest.raises(ValueError, match='^order: got no permutation') as error:
            call()
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('tau', [0, 0., -1., float('nan')])
def test_softness_is_above_zero(tau):
    with pytest.raises(ValueError, match='^tau: got'):
        soft_permutation(torch.randn(2, 5), tau)


def test_rows_of_padding_only():
    x1 = torch.rand(2, 5, 4, generator=gen(0)).requires_grad_()
    W = torch.randn(4, 4, generator=gen(1))
    b = torch.zeros(4)
    mask = torch.tensor([[True]*5, [False]*5])
    for scores in (token_scores(x1, W, b, 2., mask), channel_scores(x1, W, b, mask)):
        assert (scores[1] == 0).all()
        grad, = torch.autograd.grad(scores.sum(), x1)
        assert grad.isfinite().all()
    with pytest.raises(ValueError, match='^padding_mask: .*without a real token'):
        soft_permutation(x1[..., 0], padding_mask=mask)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_padding_changes_nothing_for_real_tokens(dtype):
    x1 = torch.rand(3, 9, 4, generator=gen(0)).to(dtype)
    W = torch.randn(4, 4, generator=gen(1)).to(dtype)
    b = torch.zeros(4, dtype=dtype)
    counts = torch.tensor([9, 5, 2])
    mask = torch.arange(9) < counts[:, None]
    a_t = token_scores(x1, W, b, 2., mask)
    a_c = channel_scores(x1, W, b, mask)
    for row, n in enumerate(counts.tolist()):
        alone = x1[row:row+1, :n]
        assert_close(a_t[row, :n], token_scores(alone, W, b, 2.)[0])
        assert_close(a_c[row], channel_scores(alone, W, b)[0])


@pytest.mark.parametrize('ratios', [
    '11', 'ab', {1., .5}, {1.: 2}, (e for e in (1., .5)), None, .5, (), [], (0.,), (1.5,),
    (float('nan'),), (float('inf'),), (True,), ('0.5',), ('1/0',), (None,), ((1.,),)])
def test_what_is_no_list_of_ratios(ratios):
    with pytest.raises(ValueError, match=r'^ratios: got .*\(0,1\]') as error:
        kept_channels(ratios, 8)
    assert '\n' not in str(error.value)


def test_exact_ratios():
    assert kept_channels([.29, Decimal('.29'), Fraction(29, 100), 1], 100) == [29, 29, 29, 100]
    assert_close(rescaling((Fraction(1, 3), 1), 9), torch.tensor([3., 1.]))
    assert_close(rescaling((.05, 1.), 9, 'inverse_kept'), torch.tensor([0., 1.]))


@pytest.mark.parametrize('k', [1, 3, 7])
def test_hard_permutations_give_the_hard_mask(k):
    ratios = tuple((i+1)/k for i in range(k))[::-1]
    counts = torch.tensor([6, 3])
    tokens = torch.arange(6).expand(2, 6)
    channels = torch.stack([torch.randperm(5, generator=gen(i)) for i in range(2)])
    P_t = torch.eye(6).expand(2, 6, 6)
    P_c = torch.nn.functional.one_hot(channels, 5).float()
    hard = rank_mask(tokens, channels, ratios, counts=counts)
    soft = soft_rank_mask(P_t, P_c, ratios, counts=counts)
    for row, n in enumerate(counts.tolist()):
        assert_close(hard[row, :n], soft[row, :n])
    assert (hard[1, 3:] == 1).all()
    assert (soft[1, 3:] == 0).all()
    assert (token_groups(tokens, k, counts)[1, 3:] == k).all()


def test_masks_without_numbers():
    "Shapes alone, as the counters of operations ask for them."
    tokens = torch.empty(2, 6, dtype=torch.long, device='meta')
    channels = torch.empty(2, 5, dtype=torch.long, device='meta')
    assert rank_mask(tokens, channels, (1., .5)).shape == (2, 6, 5)


@pytest.mark.parametrize('field, wrong', [
    ('rank', 0), ('rank', 10**12), ('rank', 10**400), ('rank', True), ('rank', 32.), ('rank', '32'),
    ('scale', -1), ('scale', float('inf')), ('scale', None), ('scale', 1e39), ('start', 0),
    ('start', None), ('place', 'head'), ('place', ['mlp']), ('gradient', 1), ('outer_relu', 1),
    ('outer_relu', None), ('init', None), ('towers', None), ('towers', ()), ('towers', 'audio'),
    ('towers', {'image': 1}), ('towers', ('text', 'text')), ('towers', (['image'],))])
def test_settings_of_an_adapter(field, wrong):
    with pytest.raises(ValueError, match=f'^{field}: got .*, allowed ') as error:
        AdapterConfig(**{field: wrong})
    assert '\n' not in str(error.value)


def test_presets_of_an_adapter():
    assert AdapterConfig.paper() == AdapterConfig()
    assert AdapterConfig.likely() == AdapterConfig(gradient='rescaled')
    best = AdapterConfig(gradient='rescaled', outer_relu=False, scale=.1)
    assert AdapterConfig.recommended() == best
