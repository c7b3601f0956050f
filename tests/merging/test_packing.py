"""Samples of different length in one sequence: where their tokens lie, and when they do."""

from types import SimpleNamespace

import pytest
import torch
from made_tokens import plain

from mame_lab.merging import Ward, layout
from mame_lab.merging.layout import padded_length
from mame_lab.merging.state import MergeState, attention_bias, make_packing

LENGTHS = (3, 6, 1)


def lengths_as_mask(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_packing_leaves_padding_out_and_unpacking_brings_zeros():
    valid_BN = lengths_as_mask(LENGTHS)
    size_BN1 = torch.arange(1.0, 19).view(3, 6, 1) * valid_BN[..., None]
    packing = make_packing(valid_BN, LENGTHS, attention_bias(size_BN1, valid_BN, prop_attn=True))
    x_BNC = torch.randn(3, 6, 4)
    x_1MC = packing.pack(x_BNC)
    assert torch.equal(x_1MC, torch.cat([x[:n] for x, n in zip(x_BNC, LENGTHS, strict=True)])[None])
    assert torch.equal(packing.unpack(x_1MC), x_BNC * valid_BN[..., None])
    assert (packing.lengths, packing.padded) == (LENGTHS, (3, 6))
    assert torch.equal(packing.bias_M, packing.pack(size_BN1)[0, :, 0].log())


def scattered(copies: tuple[int, ...], patches: int = 12) -> torch.Tensor:
    """Samples of orthogonal tokens, of which the first `copies` sources are copies of the target before them."""
    x_BNC = torch.eye(patches, dtype=torch.float64).repeat(len(copies), 1, 1)
    for x_NC, number in zip(x_BNC, copies, strict=True):
        x_NC[1 : 2 * number : 2] = x_NC[0 : 2 * number : 2]
    return x_BNC


def step(state: MergeState, x: torch.Tensor) -> tuple[torch.Tensor, MergeState]:
    return state.merge(Ward(tau=0.9), x, x, None, None)


def test_samples_are_packed_as_long_as_they_differ():
    x, state = step(MergeState(0, pack=True), scattered((2, 5, 0)))
    assert x.shape == (1, 10 + 7 + 12, 12)
    assert state.packing.lengths == (10, 7, 12)
    assert state.size_BN1.shape == (3, 12, 1)
    same, state = step(MergeState(0, pack=True), scattered((3, 3, 3)))
    assert same.shape == (3, 9, 12)
    assert state.packing is None


def test_samples_that_become_equal_are_packed_no_more():
    """5 and 4 tokens, of which the last source of the first sample merges: 4 and 4."""
    valid_BN = lengths_as_mask((5, 4))
    x_BNC = torch.eye(5, dtype=torch.float64).repeat(2, 1, 1)
    x_BNC[0, 3] = x_BNC[0, 2]
    size_BN1 = torch.full((2, 5, 1), 2.0, dtype=torch.float64) * valid_BN[..., None]
    bias_B11N = attention_bias(size_BN1, valid_BN, prop_attn=True)
    origin_BN = torch.arange(5).expand(2, 5) + 10
    packing = make_packing(valid_BN, (5, 4), bias_B11N)
    state = MergeState(0, False, True, size_BN1, origin_BN, valid_BN, bias_B11N, packing)
    x, state = step(state, packing.pack(x_BNC))
    assert state.packing is None
    assert state.valid_BN is None
    assert torch.equal(x, torch.stack([x_BNC[0, [0, 1, 2, 4]], x_BNC[1, :4]]))
    assert state.size_BN1[..., 0].tolist() == [[2, 2, 4, 2], [2, 2, 2, 2]]
    assert state.origin_BN.tolist() == [[10, 11, 12, 14], [10, 11, 12, 13]]
    assert torch.equal(state.bias_B11N, state.size_BN1.log().mT[:, None])


@pytest.mark.parametrize("prop_attn", [True, False])
def test_bias_of_padding_hides_it_whatever_its_size(prop_attn):
    valid_BN = lengths_as_mask((2, 3))
    size_BN1 = torch.tensor([[4.0, 2, 0], [1, 1, 3]])[..., None].requires_grad_()
    bias_B11N = attention_bias(size_BN1, valid_BN, prop_attn)
    assert bias_B11N.shape == (2, 1, 1, 3)
    assert bias_B11N[0, 0, 0].tolist() == [*(size_BN1[0, :2, 0].log().tolist() if prop_attn else [0, 0]), float("-inf")]
    without = attention_bias(size_BN1[1:], None, prop_attn)
    assert (without is None) != prop_attn
    if prop_attn:
        assert torch.equal(without, bias_B11N[1:])
        bias_B11N.exp().sum().backward()
        assert size_BN1.grad.isfinite().all()


@pytest.mark.parametrize(("longest", "before", "on_gpu"), [(5, 99, 16), (16, 99, 16), (17, 99, 32), (97, 99, 99)])
def test_a_gpu_meets_few_lengths(longest, before, on_gpu):
    tokens = plain(torch.zeros(1, 1, 1))
    assert padded_length(longest, before, tokens) == longest
    on_cuda = tokens._replace(x_BNC=SimpleNamespace(is_cuda=True))
    assert padded_length(longest, before, on_cuda) == on_gpu


def test_padding_beyond_the_longest_changes_nothing(monkeypatch):
    x = scattered((2, 5, 0))
    y, state = step(MergeState(0), x)
    monkeypatch.setattr(layout, "padded_length", lambda longest, before, tokens: before)
    longer, longer_state = step(MergeState(0), x[:2])
    assert longer.shape[1] == 12
    assert longer_state.valid_BN.sum(1).tolist() == [10, 7]
    for b, kept in enumerate((10, 7)):
        assert torch.equal(longer[b, :kept], y[b, :kept])
        assert torch.equal(longer_state.size_BN1[b, :kept], state.size_BN1[b, :kept])
    assert (longer_state.size_BN1[0, 10:] == 0).all()
