"""The multiply-adds that a model runs, counted by its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def gflops(model: Callable[[Tensor], object], inputs_B: Tensor, together: bool = False) -> dict[str, float]:
    """1e9 multiply-adds a sample, mean, of each module by its name; "" is the whole model.

    It is what the field reports as GFLOPs (ViT-S/16 at 224 px: 4.60), counted in the matrix products and convolutions
    that really run; elementwise work is left out, as is usual. Samples run one at a time, so that a model which pads a
    batch to its longest sample is charged for each sample's own tokens, or `together`, for a model whose samples depend
    on their batch; and under the math kernel of attention, because the counter misses some fused ones.
    """
    with _frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for inputs in [inputs_B] if together else inputs_B.split(1):
            model(inputs)
    counts = {name: sum(of.values()) / 2e9 / len(inputs_B) for name, of in counter.get_flop_counts().items()}
    root = type(model).__name__
    return {"": counts.get("Global", 0.0)} | {
        name.removeprefix(f"{root}."): count for name, count in counts.items() if name.startswith(f"{root}.")
    }


@contextmanager
def _frozen(model: object) -> Iterator[None]:
    """No parameter asks for a gradient: torch's counter fails on views of those that do, such as a learned query's."""
    trained = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def gflops_by_shapes(model: Callable[[Tensor], object], inputs_B: Tensor) -> float:
    """`gflops` of the whole model and batch by shapes alone: nothing is computed, so no number may decide a shape."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return gflops(model, inputs_B, together=True)[""]
