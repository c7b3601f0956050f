"""The Result: what merging costs in accuracy and gains in speed, in one value with the conditions it holds under.

A number that loggers and the table show has its group and title in the metadata of its field; `metrics.METRICS` are
those of a classifier's outputs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mame_lab.data.files import whole_file
from mame_lab.errors import MameLabError
from mame_lab.measure.conditions import Conditions
from mame_lab.measure.paired import Change
from mame_lab.measure.proportion import Proportion

CHANGE = "_change"  # at the end of what the change of a score is called

Score = Proportion | float
EvaluatedBy = Literal["classifier", "zero-shot", "k-NN", "images"]


def shown(group: str, title: str = "", ratio: str = "") -> dict[str, Any]:
    """The metadata of a field that loggers show as GROUP/FIELD.

    Args:
        group: cost, speed, or test.
        title: of its row in the table; none: it has no row. It may name fields of the result, as in {train_batch}.
        ratio: the field of the result with merged over unmerged, where that is measured by itself.
    """
    return {"group": group, "title": title, "ratio": ratio}


@dataclass(frozen=True, kw_only=True)
class ModelMeasurement:
    """One side of the comparison. None: not measured.

    Attributes:
        gflops: 1e9 multiply-adds a sample, mean.
        tokens: after each block, mean over samples.
        peak_memory_mb: 1e6 bytes in the forward of a batch, beyond weights and input.
        samples_per_s, train_samples_per_s: of one process, mean over processes.
        latency_ms_p50, latency_ms_p95: of a batch.
        step_ms_p50: of one step of many that make a sample.
        scores: of `metrics.METRICS`, by name.
        quality: of generated images, by the name of the measure.
    """

    gflops: float = field(metadata=shown("cost", "GFLOPs a sample"))
    tokens: list[float]
    peak_memory_mb: float | None = field(default=None, metadata=shown("cost", "peak memory, MB"))
    samples_per_s: float = field(metadata=shown("speed", "samples/s", "speedup"))
    latency_ms_p50: float = field(metadata=shown("speed", "latency p50, ms"))
    latency_ms_p95: float = field(metadata=shown("speed", "latency p95, ms"))
    train_samples_per_s: float | None = field(
        default=None, metadata=shown("speed", "training, batch {train_batch}", "train_speedup")
    )
    step_ms_p50: float | None = field(default=None, metadata=shown("speed", "step p50, ms"))
    scores: dict[str, Score] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)

    @property
    def top1(self) -> Proportion | None:
        top1 = self.scores.get("top1")
        return top1 if isinstance(top1, Proportion) else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A merged model against the same weights unmerged, measured in the same run. None: not measured.

    Attributes:
        merged, unmerged: each by itself.
        conditions: what the numbers hold for.
        evaluated_by: what gives the classes.
        changes: of the scores that are shares, merged against unmerged on the same samples.
        agreement: samples with the same top-1 class.
        kl: KL(unmerged || merged), nats.
        feature_error: mean shift by merging over the mean distance of unmerged features from their mean.
        speedup, train_speedup: median over rounds of unmerged over merged time.
        train_batch: samples in the training steps that were timed, of one process.
        loader_samples_per_s: of the data loader alone, of one process.
    """

    merged: ModelMeasurement
    unmerged: ModelMeasurement
    conditions: Conditions
    evaluated_by: EvaluatedBy
    changes: dict[str, Change] = field(default_factory=dict)
    agreement: Proportion | None = field(default=None, metadata=shown("test", "agreement"))
    kl: float | None = field(default=None, metadata=shown("test", "KL, nats"))
    feature_error: float | None = field(metadata=shown("test", "feature error"))
    speedup: float | None = field(metadata=shown("speed"))
    train_speedup: float | None = field(default=None, metadata=shown("speed"))
    train_batch: int | None = None
    loader_samples_per_s: float | None = field(default=None, metadata=shown("speed"))

    @property
    def top1_change(self) -> Change | None:
        return self.changes.get("top1")

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
        processes = self.conditions.processes
        scalars: dict[str, Score | None] = {
            "speed/realised": self.realised,
            "speed/samples_per_s_total": self.merged.samples_per_s * processes,
            "speed/processes": float(processes),
            "speed/global_train_batch": self.train_batch and float(self.train_batch * processes),
            "cost/flop_ratio": self.flop_ratio,
        }
        scalars |= {f"{each.metadata['group']}/{each.name}": value for each, value in shown_fields(self)}
        for name, change in self.changes.items():
            scalars |= {f"test/{name}_change": change.value, f"test/{name}_p": change.p}
        for arm, suffix in ((self.merged, ""), (self.unmerged, "_unmerged")):
            scalars |= {f"{each.metadata['group']}/{each.name}{suffix}": value for each, value in shown_fields(arm)}
            scalars |= {f"test/{name}{suffix}": value for name, value in arm.scores.items()}
            scalars |= {f"quality/{name}{suffix}": value for name, value in arm.quality.items()}
        scalars |= {f"tokens/block_{i:02d}": tokens for i, tokens in enumerate(self.merged.tokens)}
        numbers = {name: x.value if isinstance(x, Proportion) else x for name, x in scalars.items()}
        return {name: x for name, x in numbers.items() if x is not None and math.isfinite(x)}

    def to_json(self) -> str:
        """Scores and changes stand beside the other numbers. A number that is not finite is null: not measured."""
        values = asdict(self)
        for arm in ("merged", "unmerged"):
            values[arm] |= values[arm].pop("scores")
        values |= {f"{name}{CHANGE}": change for name, change in values.pop("changes").items()}
        return json.dumps(_finite(values), indent=2, allow_nan=False, default=str, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json`, whole or not at all."""
        with whole_file(Path(path)) as part:
            part.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what `save` wrote.

        Raises:
            MameLabError: the file holds no result, or one of another version.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            values = _with_parts(json.loads(text))
            for arm in ("merged", "unmerged"):
                known = {each.name for each in fields(ModelMeasurement)}
                parts = _with_parts(values[arm])
                scores = {name: parts.pop(name) for name in parts.keys() - known}
                values[arm] = ModelMeasurement(**parts, scores=_measured(scores))
            changes = {name: values.pop(name) for name in list(values) if name.endswith(CHANGE)}
            changes = {name.removesuffix(CHANGE): change for name, change in changes.items()}
            conditions = Conditions(**values.pop("conditions"))
            return cls(**values, conditions=conditions, changes=_measured(changes))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MameLabError(f"{path} is no result of this version ({error}): evaluate again") from error


def shown_fields(measured: ModelMeasurement | Result) -> Iterator[tuple[Field[Any], Any]]:
    """The fields with a group, each with its value."""
    return ((each, getattr(measured, each.name)) for each in fields(measured) if "group" in each.metadata)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_parts(values: dict[str, Any]) -> dict[str, Any]:
    made = {"hits": Proportion, "low": Change}
    return {
        name: next((cls(**x) for key, cls in made.items() if isinstance(x, dict) and key in x), x)
        for name, x in values.items()
    }


def _measured(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
