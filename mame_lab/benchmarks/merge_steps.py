"""The merge steps of one forward pass by themselves: to be timed, and what they have to move."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor, nn

from mame_lab.measure import speed
from mame_lab.merging.method import Method, SequenceMethod
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.state import merge_step
from mame_lab.merging.tokens import Tokens
from mame_lab.merging.wrapper import MethodWrapper
from mame_lab.models import apply, shared_copy


class MergeSteps:
    """A call does the merge steps of one forward pass of a model on its inputs, and nothing else.

    Args:
        model: unmerged.
        method: for vision transformers.
        inputs_B: images, or videos.
    """

    def __init__(self, model: nn.Module, method: Method, inputs_B: Tensor) -> None:
        assert isinstance(method, SequenceMethod)  # `apply` refused others.
        spy = _Spy(method)
        apply(shared_copy(model), spy)(inputs_B)
        self.steps = spy.steps

    def __call__(self) -> None:
        for step in self.steps:
            merge_step(*step)

    def least_bytes(self) -> int:
        """What they have to read and write at the least: each token and what it is compared by once, what remains once.

        The roofline of a step: on any processor its time is no less than this over the memory bandwidth.
        """
        return sum(_least_bytes(method, tokens, r) for method, tokens, r in self.steps)


def _least_bytes(method: SequenceMethod, tokens: Tokens, r: int | None) -> int:
    after = method.plan(tokens, r).layout.place_BK
    kept = after.numel() * tokens.x_BNC.shape[2] * tokens.x_BNC.element_size()
    keys = tokens.key_BHND
    return tokens.x_BNC.nbytes + kept + (0 if keys is None else keys.numel() * keys.element_size())


class _Spy(MethodWrapper[SequenceMethod]):
    """Merges as `base` does, and keeps what each step is given: the method as its block has it, tokens, and r."""

    def __init__(self, base: SequenceMethod) -> None:
        super().__init__(base)
        self.steps: list[tuple[SequenceMethod, Tokens, int | None]] = []

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        self.steps.append((self.base, tokens, r))
        return super().plan(tokens, r)


def copy_gb_per_s(device: torch.device) -> float:
    """The memory bandwidth that a copy of 256 MB reaches, reading and writing counted."""
    x = torch.empty(1 << 26, device=device)
    taken = speed.time_interleaved({"copy": x.clone}, device, max_rounds=10)["copy"]
    return 2 * x.nbytes / median(taken) / 1e9
