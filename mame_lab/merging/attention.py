"""A look into a model's own attention, and packed attention in its place: no attention is copied.

B batch, H heads, N tokens of a sample, M tokens of all samples, D channels of a head.
"""

import math
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mame_lab.errors import MameLabError
from mame_lab.merging.tokens import precise


class Call(NamedTuple):
    """What one attention was given.

    Attributes:
        query_BHND, key_BHND: what it compared.
        scale: what their products are multiplied with.
    """

    query_BHND: Tensor
    key_BHND: Tensor
    scale: float


class Attention(TorchFunctionMode):
    """While it is entered, every call of PyTorch's scaled dot-product attention passes through here.

    Args:
        bias_M: what is added to the logits of each key, where the tokens of all samples lie in one sequence;
            attention then stays within each sample. None: attention is not changed.
        lengths: the tokens of each sample of such a sequence.
        mask_B11N: what is added to the logits of each key, for a model that gives its attention no mask.

    Attributes:
        calls: what the calls so far were given.

    Raises:
        MameLabError: (on exit) no call came: the model computes attention in another way.
    """

    def __init__(
        self, bias_M: Tensor | None = None, lengths: tuple[int, ...] = (), mask_B11N: Tensor | None = None
    ) -> None:
        super().__init__()
        self.bias_M = bias_M
        self.lengths = lengths
        self.mask_B11N = mask_B11N
        self.calls: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        scale = kwargs.get("scale")
        self.calls.append(Call(args[0], args[1], args[0].shape[-1] ** -0.5 if scale is None else scale))
        if self.bias_M is not None:
            return packed_attention(*args[:3], self.bias_M, self.lengths)
        return func(*args, **(kwargs if self.mask_B11N is None else kwargs | {"attn_mask": self.mask_B11N}))

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and not self.calls:
            raise MameLabError(
                "methods that look at attention (such as mame=ward and mame=tome) and mame.batching=packed need "
                "PyTorch's fused attention, which this model does not use: unset TIMM_FUSED_ATTN, or choose mame=mame"
            )


def packed_attention(
    q_1HMD: Tensor, k_1HMD: Tensor, v_1HMD: Tensor, bias_M: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    """Attention of every sample over its own tokens, the samples one after the other in one sequence.

    On a GPU in half precision by one variable-length kernel, elsewhere sample by sample.
    """
    if q_1HMD.is_cuda and q_1HMD.dtype in (torch.float16, torch.bfloat16):
        return _varlen_attention(q_1HMD, k_1HMD, v_1HMD, bias_M, lengths)
    parts = [tensor.split(lengths, 2) for tensor in (q_1HMD, k_1HMD, v_1HMD)]
    samples = zip(*parts, bias_M.to(q_1HMD.dtype).split(lengths), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(q, k, v, attn_mask=bias_N[None]) for q, k, v, bias_N in samples], 2
    )


def with_bias(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, bias_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, N, H, D + 8): by 8 more channels the bias of the keys enters their product; v gets zeros.

    Ones in q meet the bias over the scale in k, in two parts whose sum is exact to twice the precision of the tokens.
    """
    channels = q_BHND.shape[-1]
    q_BNHD, k_BNHD, v_BNHD = (F.pad(tensor.transpose(1, 2), (0, 8)) for tensor in (q_BHND, k_BHND, v_BHND))
    bias_BN1 = math.sqrt(channels) * bias_BN.to(precise(bias_BN))[..., None]
    coarse_BN1 = bias_BN1.to(k_BNHD.dtype)
    q_BNHD[..., channels : channels + 2] = 1
    k_BNHD[..., channels] = coarse_BN1
    k_BNHD[..., channels + 1] = (bias_BN1 - coarse_BN1).to(k_BNHD.dtype)
    return q_BNHD, k_BNHD, v_BNHD


def _varlen_attention(
    q_1HMD: Tensor, k_1HMD: Tensor, v_1HMD: Tensor, bias_M: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    channels = q_1HMD.shape[-1]
    ends = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, pin_memory=True)
    ends = ends.to(q_1HMD.device, non_blocking=True)
    q_MHD, k_MHD, v_MHD = (tensor[0] for tensor in with_bias(q_1HMD, k_1HMD, v_1HMD, bias_M[None]))
    y_MHD = varlen_attn(q_MHD, k_MHD, v_MHD, ends, ends, max(lengths), max(lengths), scale=channels**-0.5)
    assert isinstance(y_MHD, Tensor)
    return y_MHD[..., :channels].transpose(0, 1)[None]
