"""Run folders as runs leave them, and what they hold."""

from dataclasses import replace
from pathlib import Path

import yaml

from mame_lab.measure.conditions import Conditions
from mame_lab.measure.paired import Change
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import ModelMeasurement, Result

CONDITIONS = Conditions(
    device="Example GPU",
    dtype="16-mixed",
    batch=64,
    rounds=30,
    threads=2,
    seed=7,
    weights="0123456789ab",
    versions={"torch": "2.15.0"},
    commit="abcdef0",
    date="2026-11-22T12:00:00+00:00",
)


def make_result(
    hits: int | None = 800, speed: float = 1500.0, gflops: float = 2.0, model: str = "vit_s", **changed
) -> Result:
    """Of 1000 images; unmerged has 810 hits, 1000 samples/s and 4 GFLOPs."""
    unmerged = ModelMeasurement(
        gflops=4.0,
        tokens=[100.0] * 3,
        samples_per_s=1000.0,
        latency_ms_p50=64.0,
        latency_ms_p95=70.0,
        scores={} if hits is None else {"top1": Proportion(810, 1000)},
    )
    merged = replace(
        unmerged,
        gflops=gflops,
        tokens=[90.0, 80.0, 61.4],
        samples_per_s=speed,
        scores={} if hits is None else {"top1": Proportion(hits, 1000)},
    )
    more = {"model": model, "dataset": "digits", "merging": "ward(r=8)"}
    return Result(
        merged=merged,
        unmerged=unmerged,
        evaluated_by="classifier",
        feature_error=None,
        speedup=speed / 1000,
        changes={}
        if hits is None
        else {"top1": Change((hits - 810) / 1000, (hits - 830) / 1000, (hits - 790) / 1000, 0.3)},
        conditions=replace(CONDITIONS, more=more, **changed),
    )


def save_run(folder: Path, *overrides: str, result: Result | None = None, error: str | None = None) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if result:
        result.save(folder / "result.json")
    if error is not None:
        (folder / "error.txt").write_text(f"{error}\n")
    return folder
