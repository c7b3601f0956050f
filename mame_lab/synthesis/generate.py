"""A text-to-image pipeline makes the same images with one U-Net and another.

3HW: RGB from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mame_lab.data.progress import track

WARMUP_STEPS = 2


class Picture(NamedTuple):
    """One prompt and seed by every arm.

    Attributes:
        prompt, seed: as asked.
        images: (3, H, W) by arm.
        seconds: that each took, text encoder and decoder included.
    """

    prompt: str
    seed: int
    images: dict[str, Tensor]
    seconds: dict[str, float]


def generate(
    pipe: Any, unets: Mapping[str, nn.Module], requests: Sequence[tuple[str, int]], options: dict[str, Any]
) -> Iterator[Picture]:
    """Every request by every arm, in an order that reverses with each request.

    The noise of an image follows from its seed alone, on the CPU: it is that of every device, arm and run.

    Args:
        pipe: of diffusers.
        unets: the arms.
        requests: (prompt, seed) of each image.
        options: what the pipeline is called with besides.
    """
    order = list(unets)
    for arm in order:
        _image(pipe, unets[arm], *requests[0], options | {"num_inference_steps": WARMUP_STEPS})
    for prompt, seed in track(requests, f"generating by {len(order)} arms"):
        images, seconds = {}, {}
        for arm in order:
            start = perf_counter()
            images[arm] = _image(pipe, unets[arm], prompt, seed, options)
            seconds[arm] = perf_counter() - start
        order.reverse()
        yield Picture(prompt, seed, {arm: images[arm] for arm in unets}, {arm: seconds[arm] for arm in unets})


def captured_step(pipe: Any, request: tuple[str, int], options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What the U-Net is called with in the last of two steps of a request: arguments to time and to count it on."""
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def keep(module: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        calls.append((arguments, named))

    hook = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        _image(pipe, pipe.unet, *request, options | {"num_inference_steps": WARMUP_STEPS})
    finally:
        hook.remove()
    return calls[-1]


def _image(pipe: Any, unet: nn.Module, prompt: str, seed: int, options: dict[str, Any]) -> Tensor:
    pipe.unet = unet
    torch.manual_seed(seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return pipe(prompt, generator=noise, output_type="pt", **options).images[0].float().cpu()
