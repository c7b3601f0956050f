"""The Result: what merging costs in accuracy and gains in speed, in one value with the conditions it holds under."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mame_lab.errors import MameLabError
from mame_lab.measure.conditions import Conditions
from mame_lab.measure.paired import Change
from mame_lab.measure.proportion import Proportion

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class ModelMeasurement:
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
class Result:
    """A merged model against the same weights unmerged, measured in the same run. None: not measured."""

    merged: ModelMeasurement
    unmerged: ModelMeasurement
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
                fields[name] = ModelMeasurement(**_with_parts(fields[name]))
            fields["conditions"] = Conditions(**fields["conditions"])
            return cls(**_with_parts(fields))
        except (ValueError, TypeError, KeyError) as error:
            raise MameLabError(f"{path} is no result of this version ({error}): evaluate again") from error


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
