"""Attention with a bias on each key, by every way that PyTorch has for it.

B batch, H heads, N tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mame_lab.benchmarks.suite.rows import SuiteRow
from mame_lab.benchmarks.suite.timing import Machine
from mame_lab.measure import speed
from mame_lab.merging.attention import with_bias

HEAD = 64
UNBIASED = "no bias"


class Inputs(NamedTuple):
    """What an attention is given."""

    query_BHND: Tensor
    key_BHND: Tensor
    value_BHND: Tensor
    bias_BN: Tensor

    @classmethod
    def random(cls, machine: Machine, batch: int, heads: int, tokens: int) -> Inputs:
        """Laid out as blocks have them, with the logs of sizes."""
        settings = {"device": machine.device, "dtype": machine.dtype}
        qkv_3BHND = torch.randn(batch, tokens, 3, heads, HEAD, **settings).permute(2, 0, 3, 1, 4)
        return cls(*qkv_3BHND, torch.randint(1, 9, (batch, tokens), device=machine.device).log().to(machine.dtype))


def unbiased(given: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(*given[:3])


def masked(given: Inputs) -> Tensor:
    """What blocks do: PyTorch chooses a kernel that takes a float mask."""
    return F.scaled_dot_product_attention(*given[:3], attn_mask=given.bias_BN[:, None, None])


def masked_by(kernel: SDPBackend) -> Callable[[Inputs], Tensor]:
    def attend(given: Inputs) -> Tensor:
        with sdpa_kernel(kernel):
            return masked(given)

    return attend


def in_channels(given: Inputs) -> Tensor:
    """Without a mask, which lets PyTorch take its flash kernel."""
    q, k, v = (tensor.transpose(1, 2) for tensor in with_bias(*given))
    return F.scaled_dot_product_attention(q, k, v, scale=HEAD**-0.5)[..., :HEAD]


def flexible() -> Callable[[Inputs], Tensor]:
    """FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(given: Inputs) -> Tensor:
        bias_BN = given.bias_BN
        y_BHND = compiled(*given[:3], score_mod=lambda score, b, h, i, j: score + bias_BN[b, j])
        assert isinstance(y_BHND, Tensor)
        return y_BHND

    return attend


def ways(device: torch.device) -> dict[str, Callable[[Inputs], Tensor]]:
    """By name; a CPU has one kernel, and compiles too long for what it has to gain."""
    found = {UNBIASED: unbiased, "mask": masked, "channels": in_channels}
    if device.type != "cuda":
        return found
    kernels = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    return found | {f"mask, {name}": masked_by(kernel) for name, kernel in kernels.items()} | {"flex": flexible()}


def attention(machine: Machine, heads: int, tokens: int, batch: int) -> Iterator[SuiteRow]:
    """Each way, as a ratio to attention without a bias; a kernel that refuses the inputs is named."""
    given = Inputs.random(machine, batch, heads, tokens)
    with torch.inference_mode():
        found = {name: way for name, way in ways(machine.device).items() if _runs(name, way, given)}
        arms: dict[str, Callable[[], object]] = {name: partial(way, given) for name, way in found.items()}
        taken = machine.time(arms)
    for name, seconds in taken.items():
        ratio = speed.speedup(seconds, taken[UNBIASED])
        yield SuiteRow(f"{heads} heads, {tokens} tokens", batch, "attention", name, 1e3 * median(seconds), ratio)


def _runs(name: str, way: Callable[[Inputs], Tensor], given: Inputs) -> bool:
    try:
        way(given)
    except RuntimeError as error:
        print(f"left out: attention by {name} ({first_line(error)})", flush=True)
        return False
    return True


def first_line(error: RuntimeError) -> str:
    """What went wrong, in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
