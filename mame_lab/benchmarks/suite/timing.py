"""What the suite times of one model: forward passes, merge steps, training steps, denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mame_lab.benchmarks.merge_steps import MergeSteps
from mame_lab.benchmarks.suite.families import Subject
from mame_lab.benchmarks.suite.rows import SuiteRow
from mame_lab.measure import speed
from mame_lab.measure.cost import gflops
from mame_lab.measure.memory import peak_memory_mb
from mame_lab.merging import METHODS, Method, Ward
from mame_lab.models import apply, family_of, shared_copy
from mame_lab.models.compilation import compile_models
from mame_lab.solver.solve import solve

UNMERGED = "unmerged"
BUDGETED = "ward", "mame", "tome"
# The share of the multiply-adds that thresholds come down to, and the samples that they are found on.
ADAPTIVE_COST, SOLVED_ON = 0.6, 16
# The share of the tokens that merging in a U-Net removes.
UNET_R = 0.5


class InTurns:
    """Calls a model on a batch, on its mirror images, and so on: thresholds then remove other numbers of tokens."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.batches = model, cycle((x, x.flip(-1), x.flip(-2)))

    def __call__(self) -> object:
        return self.model(next(self.batches))


class Machine(NamedTuple):
    """Where the suite runs.

    Attributes:
        device, dtype: of models and inputs.
        copy_gb_per_s: the memory bandwidth that a copy reaches.
        seconds: at most of one timing, warm-up apart.
    """

    device: torch.device
    dtype: torch.dtype
    copy_gb_per_s: float
    seconds: float

    def time(self, arms: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        return speed.time_interleaved(arms, self.device, max_rounds=15, min_rounds=3, seconds=self.seconds)

    def place(self, model: nn.Module) -> nn.Module:
        return model.eval().to(self.device, self.dtype)


def forward(machine: Machine, subject: Subject, batch: int) -> Iterator[SuiteRow]:
    """The unmerged model and each method with the same budget; and the merge steps alone."""
    model, x = machine.place(subject.build()), subject.inputs(batch, machine.device, machine.dtype)
    yield from _rows(machine, subject, model, _budgets(subject), x, "forward")
    yield from merge_steps(machine, subject, model, _budgets(subject), x)


def forward_compiled(machine: Machine, subject: Subject, batch: int) -> Iterator[SuiteRow]:
    """The same through torch.compile, on a GPU with CUDA graphs."""
    model, x = machine.place(subject.build()), subject.inputs(batch, machine.device, machine.dtype)
    yield from _rows(machine, subject, model, _budgets(subject), x, "compiled")


def _budgets(subject: Subject) -> dict[str, Method]:
    return {name: METHODS[name](r=subject.r, blocks=subject.depth) for name in BUDGETED}


def adaptive(machine: Machine, subject: Subject, batch: int) -> Iterator[SuiteRow]:
    """Thresholds, with the batch padded and packed."""
    model, x = machine.place(subject.build()), subject.inputs(batch, machine.device, machine.dtype)
    tau = _tau(model, x)
    methods = {f"ward, {way}": Ward(tau=tau, batching=way) for way in ("per_sample", "packed")}
    yield from _rows(machine, subject, model, methods, x, "forward")


def adaptive_compiled(machine: Machine, subject: Subject, batch: int) -> Iterator[SuiteRow]:
    """Thresholds through torch.compile, which leaves the merge steps as they are."""
    model, x = machine.place(subject.build()), subject.inputs(batch, machine.device, machine.dtype)
    yield from _rows(machine, subject, model, {"ward, per_sample": Ward(tau=_tau(model, x))}, x, "compiled")


def _tau(model: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        solved = solve(model, Ward(flops=ADAPTIVE_COST, solve="adaptive"), x[:SOLVED_ON])
    assert isinstance(solved, Ward)
    return solved.tau


def _rows(
    machine: Machine, subject: Subject, model: nn.Module, methods: Mapping[str, Method], x: Tensor, what: str
) -> Iterator[SuiteRow]:
    models = {UNMERGED: model} | {name: apply(shared_copy(model), method) for name, method in methods.items()}
    cost = {name: gflops(each, x[:SOLVED_ON]) for name, each in models.items()}
    if what == "compiled":
        compile_models(*models.values(), graphs=True)
    with torch.inference_mode():
        arms = {name: InTurns(each, x) for name, each in models.items()}
        taken = machine.time(arms)
        measured = {} if what == "compiled" else arms
        memory = {name: peak_memory_mb(arm, machine.device) for name, arm in measured.items()}
    for name, seconds in taken.items():
        ratios = speed.speedup(seconds, taken[UNMERGED]), cost[UNMERGED] / cost[name]
        yield SuiteRow(subject.name, len(x), what, name, 1e3 * median(seconds), *ratios, memory.get(name))


def merge_steps(
    machine: Machine, subject: Subject, model: nn.Module, methods: Mapping[str, Method], x: Tensor
) -> Iterator[SuiteRow]:
    with torch.inference_mode():
        steps = {name: MergeSteps(model, method, x) for name, method in methods.items()}
        taken = machine.time(steps)
    for name, each in steps.items():
        seconds = median(taken[name])
        bandwidth = each.least_bytes() / seconds / 1e9 / machine.copy_gb_per_s
        yield SuiteRow(subject.name, len(x), "merge steps", name, 1e3 * seconds, bandwidth=bandwidth)


def training(machine: Machine, subject: Subject, batch: int) -> Iterator[SuiteRow]:
    """A training step of the last layer: forward, loss, backward."""
    model, x = machine.place(subject.build()), subject.inputs(batch, machine.device, machine.dtype)
    model.requires_grad_(False)
    family_of(model).classifier(model).requires_grad_(True)
    labels_B = torch.arange(batch, device=machine.device)
    models = {UNMERGED: model, "ward": apply(shared_copy(model), Ward(r=subject.r, blocks=subject.depth))}
    loss = nn.functional.cross_entropy
    taken = machine.time({name: speed.training_step(each, loss, x, labels_B) for name, each in models.items()})
    for name, seconds in taken.items():
        ratio = speed.speedup(seconds, taken[UNMERGED])
        yield SuiteRow(subject.name, batch, "training step", name, 1e3 * median(seconds), ratio)


def denoising(
    machine: Machine, name: str, build: Callable[[], Any], text_channels: int, side: int
) -> Iterator[SuiteRow]:
    """A step of a U-Net with guidance, so on a batch of 2."""
    unet = machine.place(build())
    settings = {"device": machine.device, "dtype": machine.dtype}
    text = torch.zeros(2, 77, text_channels, **settings)
    inputs = torch.randn(2, 4, side, side, **settings), torch.tensor(500, device=machine.device), text
    methods = {each: METHODS[each](r=UNET_R) for each in ("ward", "tomesd")}
    models = {UNMERGED: unet} | {each: apply(shared_copy(unet), method) for each, method in methods.items()}
    with torch.inference_mode():
        arms = {each: partial(model, *inputs) for each, model in models.items()}
        taken, memory = machine.time(arms), {each: peak_memory_mb(arm, machine.device) for each, arm in arms.items()}
    for each, seconds in taken.items():
        ratio = speed.speedup(seconds, taken[UNMERGED])
        what = f"denoising step {side} x {side}"
        yield SuiteRow(name, 2, what, each, 1e3 * median(seconds), ratio, None, memory[each])
