"""The Result: what merging costs in accuracy and gains in speed, in one value with the conditions it holds under."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mame_lab.errors import MameLabError
from mame_lab.paired import Change

if TYPE_CHECKING:
    import torch
    from rich.table import Table

Z_95 = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations

# The names that libraries are installed by, where they are others.
DISTRIBUTIONS = {"open_clip": "open_clip_torch"}

LEGEND = (
    "[low, high]: 95 % interval, of a change by what differs on the same samples. Agreement: same top-1 class as "
    "unmerged. KL: divergence of merged from unmerged class probabilities. Feature error: how far merging moves a "
    "feature, over how far features lie from their mean. GFLOPs: 1e9 multiply-adds of the images that are timed; "
    "FLOP-ideal realised: speed-up over the ratio of GFLOPs. p50, p95: median and tail, of a batch."
)


@dataclass(frozen=True)
class Proportion:
    """A share of samples, with the uncertainty that comes from their number."""

    hits: int
    total: int

    def __post_init__(self):
        if self.total == 0 or not 0 <= self.hits <= self.total:
            raise MameLabError(f"{self.hits} hits of {self.total} samples is no proportion: evaluate at least 1 sample")

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson 1927), which holds up near 0 and 1 and for few samples."""
        n, p, z2 = self.total, self.value, Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of the comparison. None: not measured."""

    gflops: float  # 1e9 multiply-adds a sample, mean
    tokens: list[float]  # tokens after each block, mean over samples
    samples_per_s: float  # of one process, mean over processes
    latency_ms_p50: float  # of a batch
    latency_ms_p95: float
    peak_memory_mb: float | None = None  # 1e6 bytes in the forward of a batch, beyond weights and input
    train_samples_per_s: float | None = None
    step_ms_p50: float | None = None  # of one step of many that make a sample
    top1: Proportion | None = None
    top5: Proportion | None = None
    quality: dict[str, float] = field(default_factory=dict)  # of generated images, by the name of the measure


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the numbers hold for. `more` is what else they depend on: the model, the data, the merging."""

    device: str
    dtype: str
    batch: int
    rounds: int
    threads: int
    seed: int | None
    weights: str  # see weights_hash
    versions: dict[str, str]
    commit: str | None  # of the working directory; None outside a git repository
    date: str
    processes: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        measured = f"{self.device}, {self.dtype}, batch {self.batch}, {self.threads} threads, {self.rounds} rounds"
        if self.processes > 1:
            measured = f"{self.processes} processes, each {measured}"
        origin = f"seed {self.seed}, weights {self.weights}, commit {self.commit or 'none'}, {self.date}"
        named = ", ".join(f"{name} {value}" for name, value in (self.more | self.versions).items())
        return f"Measured on {measured}; {origin}; {named}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A merged model against the same weights unmerged, measured in the same run. None: not measured."""

    merged: Arm
    unmerged: Arm
    evaluated_by: Literal["classifier", "zero-shot", "k-NN", "images"]
    feature_error: float | None  # mean shift by merging over the mean distance of unmerged features from their mean
    speedup: float | None  # median over rounds of unmerged over merged time
    conditions: Conditions
    top1_change: Change | None = None  # of merged against unmerged, on the same samples
    top5_change: Change | None = None
    agreement: Proportion | None = None  # samples with the same top-1 class
    kl: float | None = None  # KL(unmerged || merged), nats
    train_speedup: float | None = None
    train_batch: int | None = None  # samples in the training steps that were timed, of one process
    loader_samples_per_s: float | None = None  # of the data loader alone, of one process

    @property
    def flop_ratio(self) -> float:
        """Multiply-adds of merged over those of unmerged."""
        return self.merged.gflops / self.unmerged.gflops

    @property
    def ideal_speedup(self) -> float:
        """The speed-up if time went with multiply-adds."""
        return 1 / self.flop_ratio

    @property
    def realised(self) -> float | None:
        """Speed-up over ideal speed-up; where nothing merges it is the speed-up itself."""
        return None if self.speedup is None else self.speedup / self.ideal_speedup

    def metrics(self) -> dict[str, float]:
        """Flat scalars for loggers, named group/quantity. What was not measured, or is not finite, is left out."""
        scalars: dict[str, Proportion | float | None] = {
            "test/top1_change": self.top1_change and self.top1_change.value,
            "test/top1_p": self.top1_change and self.top1_change.p,
            "test/agreement": self.agreement,
            "test/kl": self.kl,
            "test/feature_error": self.feature_error,
            "speed/speedup": self.speedup,
            "speed/realised": self.realised,
            "speed/train_speedup": self.train_speedup,
            "speed/samples_per_s_total": self.merged.samples_per_s * self.conditions.processes,
            "speed/loader_samples_per_s": self.loader_samples_per_s,
            "speed/processes": float(self.conditions.processes),
            "speed/global_train_batch": self.train_batch and float(self.train_batch * self.conditions.processes),
            "cost/flop_ratio": self.flop_ratio,
        }
        for arm, suffix in ((self.merged, ""), (self.unmerged, "_unmerged")):
            scalars |= {f"{_GROUP[name]}/{name}{suffix}": getattr(arm, name) for name in _GROUP}
            scalars |= {f"quality/{name}{suffix}": value for name, value in arm.quality.items()}
        scalars |= {f"tokens/block_{i:02d}": tokens for i, tokens in enumerate(self.merged.tokens)}
        numbers = {name: x.value if isinstance(x, Proportion) else x for name, x in scalars.items()}
        return {name: x for name, x in numbers.items() if x is not None and math.isfinite(x)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all. A number that is not finite becomes null: not measured."""
        text = json.dumps(_finite(asdict(self)), indent=2, allow_nan=False, default=str, ensure_ascii=False)
        part = Path(f"{os.fspath(path)}.part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what `save` wrote.

        Raises:
            MameLabError: the file holds no result, or one of another version.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            fields = json.loads(text)
            for name in ("merged", "unmerged"):
                fields[name] = Arm(**_with_parts(fields[name]))
            fields["conditions"] = Conditions(**fields["conditions"])
            return cls(**_with_parts(fields))
        except (ValueError, TypeError, KeyError) as error:
            raise MameLabError(f"{path} is no result of this version ({error}): evaluate again") from error

    def table(self) -> Table:
        """The result for the terminal: what was measured, and below it what the terms mean and the conditions."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title="Merged against unmerged: same weights, same run",
            caption=Text(f"{LEGEND}\n\n{self.conditions}"),
            caption_justify="left",
            box=box.HORIZONTALS,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for header in ("", "merged", "unmerged", "change"):
            table.add_column(header)
        for heading, rows in (
            (f"Accuracy, {self.evaluated_by}", _accuracy(self)),
            ("Label-free fidelity", _fidelity(self)),
            ("Cost", _cost(self)),
            (f"Speed, batch {self.conditions.batch}", _speed(self)),
        ):
            if measured := list(rows):
                table.add_section()
                table.add_row(f"[bold]{heading}")
            for row in measured:
                table.add_row(*row)
        return table


_GROUP = {
    "top1": "test",
    "top5": "test",
    "gflops": "cost",
    "peak_memory_mb": "cost",
    "samples_per_s": "speed",
    "latency_ms_p50": "speed",
    "latency_ms_p95": "speed",
    "step_ms_p50": "speed",
    "train_samples_per_s": "speed",
}


def _accuracy(result: Result) -> Iterator[tuple[str, ...]]:
    for name, of in (("top-1", "top1"), ("top-5", "top5")):
        merged, unmerged = getattr(result.merged, of), getattr(result.unmerged, of)
        if merged and unmerged:
            change = getattr(result, f"{of}_change") or f"{100 * (merged.value - unmerged.value):+.1f} points"
            yield name, *(f"{100 * arm.value:.1f} %" for arm in (merged, unmerged)), str(change)


def _fidelity(result: Result) -> Iterator[tuple[str, ...]]:
    if result.agreement is not None:
        yield "agreement", str(result.agreement)
    if result.kl is not None:
        yield "KL, nats", f"{result.kl:.2g}"
    if result.feature_error is not None:
        yield "feature error", f"{result.feature_error:.2g}"


def _cost(result: Result) -> Iterator[tuple[str, ...]]:
    merged, unmerged = result.merged, result.unmerged
    yield from _ratio("GFLOPs a sample", merged.gflops, unmerged.gflops)
    yield "tokens after blocks", _tokens(merged), _tokens(unmerged)
    yield from _ratio("peak memory, MB", merged.peak_memory_mb, unmerged.peak_memory_mb)


def _speed(result: Result) -> Iterator[tuple[str, ...]]:
    merged, unmerged = result.merged, result.unmerged
    yield from _ratio("samples/s", merged.samples_per_s, unmerged.samples_per_s, result.speedup)
    if (processes := result.conditions.processes) > 1:
        total = merged.samples_per_s * processes, unmerged.samples_per_s * processes
        yield from _ratio(f"samples/s, all {processes}", *total, result.speedup)
    yield from _ratio("latency p50, ms", merged.latency_ms_p50, unmerged.latency_ms_p50)
    yield from _ratio("latency p95, ms", merged.latency_ms_p95, unmerged.latency_ms_p95)
    yield from _ratio(
        f"training, batch {result.train_batch}",
        merged.train_samples_per_s,
        unmerged.train_samples_per_s,
        result.train_speedup,
    )
    if result.loader_samples_per_s is not None:
        yield "data loader alone", number(result.loader_samples_per_s)
    if result.realised is not None:
        yield "FLOP-ideal realised", f"{100 * result.realised:.0f} %", "", f"of {result.ideal_speedup:.2f}x"


def _ratio(
    name: str, merged: float | None, unmerged: float | None, ratio: float | None = None
) -> Iterator[tuple[str, ...]]:
    """A row of two numbers and their ratio, unless that was measured by itself."""
    if merged is not None and unmerged is not None:
        change = merged / unmerged if ratio is None else ratio
        yield name, number(merged), number(unmerged), f"{change:.2f}x"


def number(x: float, separator: str = "") -> str:
    """At least three digits, never an exponent; `separator` stands between thousands."""
    decimals = 2 - math.floor(math.log10(x)) if x > 0 else 0
    return f"{x:{separator}.{max(0, decimals)}f}"


def _tokens(arm: Arm) -> str:
    counts = [f"{tokens:.0f}" for tokens in arm.tokens]
    return f"{counts[0]} in all" if len(set(counts)) == 1 else " ".join(counts)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_parts(fields: dict[str, Any]) -> dict[str, Any]:
    made = {"hits": Proportion, "low": Change}
    return {
        name: next((cls(**x) for key, cls in made.items() if isinstance(x, dict) and key in x), x)
        for name, x in fields.items()
    }


def gather_conditions(
    device: torch.device | str,
    dtype: object,
    batch: int,
    rounds: int,
    seed: int | None,
    weights: str,
    processes: int = 1,
    library: str = "timm",
    **more: Any,
) -> Conditions:
    """The conditions of this process, here and now. `weights` is the `weights_hash` of the model of `library`."""
    import torch

    return Conditions(
        device=_device_name(torch.device(device)),
        dtype=str(dtype).removeprefix("torch."),
        batch=batch,
        rounds=rounds,
        threads=torch.get_num_threads(),
        seed=seed,
        weights=weights,
        versions=_versions("mame_lab", "torch", "timm", library) | {"python": platform.python_version()},
        commit=_commit(),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        processes=processes,
        more=more,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]} CPU"


def _versions(*libraries: str) -> dict[str, str]:
    versions = {}
    for library in libraries:
        with suppress(PackageNotFoundError):
            versions[library] = version(DISTRIBUTIONS.get(library, library))
    return versions


def _commit() -> str | None:
    """Short hash of the working directory's commit, with -dirty if tracked files differ from it."""
    try:
        git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def weights_hash(module: torch.nn.Module) -> str:
    """12 hex digits that name the weights: sha256 over name, dtype, shape, bytes of all tensors in the state dict."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
