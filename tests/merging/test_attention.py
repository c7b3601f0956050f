"""What passes through a model's own attention: keys that are seen, samples that lie in one sequence and stay apart."""

import pytest
import torch
from torch.nn import functional as F

from mame_lab import MameLabError
from mame_lab.merging.attention import Attention, packed_attention, with_bias

LENGTHS = (5, 1, 7)


def packed(channels: int, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    """q, k, v of 3 heads and the bias of the keys, for samples of `LENGTHS` tokens."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 3, sum(LENGTHS), channels, generator=generator).to(dtype) for _ in range(3)]
    return (*tensors, (1 + 300 * torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64)).log())


def within_samples(q, k, v, bias_M) -> torch.Tensor:
    """Plain attention with a mask that lets no sample see another."""
    sample_M = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(q.device)
    mask_MM = torch.where(sample_M[:, None] == sample_M, bias_M.to(q.dtype), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_MM)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_packed_samples_attend_to_themselves(dtype, tolerance):
    q, k, v, bias_M = packed(16, dtype)
    expected = within_samples(q, k, v, bias_M)
    torch.testing.assert_close(packed_attention(q, k, v, bias_M, LENGTHS), expected, rtol=tolerance, atol=tolerance)
    with Attention(bias_M, LENGTHS):
        through = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0)
    assert torch.equal(through, packed_attention(q, k, v, bias_M, LENGTHS))


@pytest.mark.parametrize("channels", [16, 48, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_bias_in_more_channels_is_the_mask(channels, dtype, tolerance):
    q, k, v, bias_M = packed(channels, dtype)
    q_1HMD, k_1HMD, v_1HMD = (each.transpose(1, 2) for each in with_bias(q, k, v, bias_M[None]))
    assert q_1HMD.shape[-1] == k_1HMD.shape[-1] == v_1HMD.shape[-1] == channels + 8
    y = F.scaled_dot_product_attention(q_1HMD, k_1HMD, v_1HMD, scale=channels**-0.5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_M.to(dtype)[None])
    torch.testing.assert_close(y[..., :channels], expected, rtol=tolerance, atol=tolerance)
    assert (y[..., channels:] == 0).all()


@pytest.mark.parametrize("channels", [16, 48, 64, 72])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bias_in_half_precision_is_exact_to_twice_the_precision(channels, dtype):
    q, k, v, bias_M = packed(channels, dtype)
    q_MHD, k_MHD, _ = (each[0].double() for each in with_bias(q, k, v, bias_M[None]))
    seen_MH = (q_MHD * k_MHD)[..., channels:].sum(-1) * channels**-0.5
    assert ((seen_MH - bias_M[:, None]).abs() <= torch.finfo(dtype).eps ** 2 * bias_M[:, None]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("channels", [48, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_variable_length_kernel_is_plain_attention(channels, dtype):
    tensors = [each.cuda() for each in packed(channels, dtype)]
    expected = within_samples(*(each.double() for each in tensors))
    y = packed_attention(*tensors, LENGTHS)
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= 2 * torch.finfo(dtype).eps * expected.norm()


def test_keys_are_seen_and_attention_is_left_as_it_is():
    q, k, v, bias_M = packed(16)
    mask = bias_M[None]
    with Attention() as attention:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        (y + 1).softmax(-1)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    (call,) = attention.calls
    assert call.query_BHND is q
    assert call.key_BHND is k
    assert call.scale == 0.25


def test_a_mask_reaches_attention_that_is_given_none():
    q, k, v, bias_M = packed(16)
    mask_B11N = bias_M[None, None, None]
    with Attention(mask_B11N=mask_B11N) as attention:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, scale=0.1)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11N, scale=0.1))
    assert attention.calls[0].key_BHND is k
    assert attention.calls[0].scale == 0.1


def test_attention_in_another_way_is_an_error_that_says_what_to_do():
    with (
        pytest.raises(MameLabError, match=r"mame=tome.* and mame.batching=packed need .* TIMM_FUSED_ATTN") as error,
        Attention(),
    ):
        torch.ones(2, 2).softmax(-1)
    assert "\n" not in str(error.value)
    with pytest.raises(ZeroDivisionError), Attention():
        raise ZeroDivisionError
    torch.ones(2, 2).softmax(-1)
