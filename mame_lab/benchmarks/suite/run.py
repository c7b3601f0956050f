"""All speed figures of a machine: the most important first, each written as it comes, in the time that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch

from mame_lab.benchmarks.merge_steps import copy_gb_per_s
from mame_lab.benchmarks.suite import families
from mame_lab.benchmarks.suite.attention import attention, first_line
from mame_lab.benchmarks.suite.rows import Rows, SuiteRow, markdown, write_json
from mame_lab.benchmarks.suite.settings import Suite
from mame_lab.benchmarks.suite.timing import (
    Machine,
    adaptive,
    adaptive_compiled,
    denoising,
    forward,
    forward_compiled,
    training,
)
from mame_lab.measure.conditions import gather_conditions
from mame_lab.merging import Method

# Timings that the suite takes are at most this share of its time each.
SHARE = 1 / 60


class Item(NamedTuple):
    """Something to time.

    Attributes:
        name: what it is.
        rows: times it.
    """

    name: str
    rows: Callable[[Machine], Iterator[SuiteRow]]


def run(settings: Suite, model: None, method: Method, data: None, trainer: None, folder: Path) -> None:
    """Time everything; write suite.csv, suite.json, suite.md and suite.png."""
    end = monotonic() + 60 * settings.minutes
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    small = device.type == "cpu" if settings.small is None else settings.small
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    machine = Machine(device, dtype, copy_gb_per_s(device), 60 * settings.minutes * SHARE)
    print(f"A copy moves {machine.copy_gb_per_s:.1f} GB/s")
    rows, left_out = Rows(folder), []
    for item in items(small):
        if reason := _time(item, machine, rows, end):
            left_out.append(f"{item.name} ({reason})")
            print(f"left out: {left_out[-1]}", flush=True)
    conditions = gather_conditions(device, dtype, 0, 15, 0, "random", copy_gb_per_s=round(machine.copy_gb_per_s, 1))
    write_json(folder / "suite.json", rows.found, conditions, {"left_out": left_out})
    (folder / "suite.md").write_text(markdown(rows.found))
    if find_spec("matplotlib"):
        from mame_lab.benchmarks.suite.chart import chart

        chart(rows.found).savefig(folder / "suite.png", dpi=150)


def items(small: bool) -> Iterator[Item]:
    """What is timed, the most important first; on a CPU what has to be compiled last, for that takes minutes."""
    if small:
        vit = families.VIT_TI
        yield from (_of(forward, vit, 8), _of(adaptive, vit, 8), _of(training, vit, 8), _of(forward, vit, 1))
        yield _unet("small U-Net", (64, 128, 128, 128), (4, 8, 8, 8), 64, 64)
        yield from (_of(forward, each, 1) for each in (families.VIT_TI_384, families.DINOV2_S, families.VIDEOMAE_TI))
        yield from (_attention(12, 150, 8), _attention(16, 1000, 1))
        yield from (_of(forward_compiled, vit, batch) for batch in (8, 1))
        yield _of(adaptive_compiled, vit, 8)
        return
    vit, large = families.VIT_B, families.VIT_L
    yield from (_of(forward, vit, 64), _of(adaptive, vit, 64), _of(forward_compiled, vit, 64), _of(forward, vit, 256))
    yield _of(forward, vit, 1)
    yield from (_unet("SD 2.1 U-Net", (320, 640, 1280, 1280), (5, 10, 20, 20), 1024, side) for side in (96, 64, 128))
    yield from (_of(forward_compiled, vit, 1), _of(forward, large, 1), _of(forward_compiled, large, 1))
    yield from (_attention(12, 150, 64), _attention(16, 500, 64), _attention(12, 1000, 8))
    yield from (_of(training, vit, 64), _of(adaptive_compiled, vit, 64), _of(forward_compiled, vit, 256))
    yield from (_of(forward, large, 64), _of(forward, vit, 8))
    for each in (families.SIGLIP, families.DINOV2, families.VIDEOMAE):
        yield from (_of(forward, each, batch) for batch in (8, 64))
    yield _of(forward_compiled, vit, 8)


def _of(rows: Callable[..., Iterator[SuiteRow]], subject: families.Subject, batch: int) -> Item:
    return Item(f"{subject.name}, batch {batch}, {rows.__name__}", partial(rows, subject=subject, batch=batch))


def _attention(heads: int, tokens: int, batch: int) -> Item:
    rows = partial(attention, heads=heads, tokens=tokens, batch=batch)
    return Item(f"attention, {tokens} tokens, batch {batch}", rows)


def _unet(name: str, channels: tuple[int, ...], heads: tuple[int, ...], text: int, side: int) -> Item:
    build = partial(families.unet, channels, heads, text)
    return Item(f"{name}, {side} x {side}", partial(denoising, name=name, build=build, text_channels=text, side=side))


def _time(item: Item, machine: Machine, rows: Rows, end: float) -> str | None:
    """Why an item was left out; None: it was not."""
    if monotonic() > end:
        return "no time left"
    try:
        for row in item.rows(machine):
            rows.add(row)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except torch.OutOfMemoryError:
        return "out of memory"
    except RuntimeError as error:  # What does not compile, or has no kernel.
        return first_line(error)
    finally:
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
    return None
