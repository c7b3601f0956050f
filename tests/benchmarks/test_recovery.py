"""Fine-tuned checkpoints beside those that they started from: what their own runs measured, in pairs."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from commands import BENCHMARK, TINY

from mame_lab import MameLabError
from mame_lab.benchmarks.recovery import run
from mame_lab.benchmarks.recovery.run import by_start
from mame_lab.measure import comparison
from mame_lab.measure.paired import MeanChange
from mame_lab.measure.result import Result
from mame_lab.models import checkpoint, load, merges
from mame_lab.models.settings import ModelSettings

SEEDS = (0, 1)


def test_the_arms_hit_what_their_runs_measured(entry_point, tmp_path, capsys, monkeypatch):
    judged = {}

    def outcomes(models, *arguments):
        judged.update({name: merges(model) for name, model in models.items()})
        return comparison.outcomes(models, *arguments)

    monkeypatch.setattr(run, "outcomes", outcomes)
    entry_point("train", tmp_path / "head", *TINY, "mame=off")
    start = tmp_path / "head/checkpoints/best.ckpt"
    for seed in SEEDS:
        tuned = ["finetune=last_layer", "optim.lr=0.1", f"model.weights={start}", "mame=tome", "mame.r=20"]
        entry_point("train", tmp_path / f"tuned{seed}", *TINY, *tuned, f"seed={seed}")
    entry_point("eval", tmp_path / "merged", f"ckpt={start}", "mame=tome", "mame.r=20", *TINY[3:])
    pattern = f"benchmark.checkpoints={tmp_path}/tuned*/checkpoints/best.ckpt"
    entry_point("eval", tmp_path / "out", f"ckpt={start}", "benchmark=recovery", pattern, *BENCHMARK[3:])

    assert judged == {"unmerged": False} | {
        f"{seed} {arm}": arm in ("merged", "fine-tuned")
        for seed in SEEDS
        for arm in ("merged", "fine-tuned", "fine-tuned, unmerged")
    }

    alone = Result.load(tmp_path / "merged/result.json")
    runs = [Result.load(tmp_path / f"tuned{seed}/result.json") for seed in SEEDS]
    merged, unmerged = ([getattr(run, arm).top1.value for run in runs] for arm in ("merged", "unmerged"))
    start_top1 = alone.unmerged.top1.value
    with (tmp_path / "out/recovery.csv").open() as file:
        rows = {(row["arm"], row["beside"]): row for row in csv.DictReader(file)}
    found = {pair: (float(row["top1"]), float(row["top1_beside"])) for pair, row in rows.items()}
    assert found == {
        ("merged", "unmerged"): pytest.approx((alone.merged.top1.value, start_top1)),
        ("fine-tuned", "unmerged"): pytest.approx((np.mean(merged), start_top1)),
        ("fine-tuned", "merged"): pytest.approx((np.mean(merged), alone.merged.top1.value)),
        ("fine-tuned, unmerged", "unmerged"): pytest.approx((np.mean(unmerged), start_top1)),
    }
    row = rows["fine-tuned", "unmerged"]
    changes = [top1 - start_top1 for top1 in merged]
    assert [float(row[key]) for key in ("lowest", "highest")] == pytest.approx([min(changes), max(changes)])
    assert (row["seeds"], float(row["cost"])) == ("2", pytest.approx(alone.flop_ratio, abs=1e-3))
    assert "95 % interval" in capsys.readouterr().out


def test_seeds_do_not_narrow_the_interval_of_the_samples():
    hits_M, beside_M = np.arange(200) % 3 > 0, np.arange(200) % 4 > 0
    once = MeanChange.between(hits_M[None], beside_M[None])
    assert once.change == pytest.approx(np.mean(hits_M) - np.mean(beside_M))
    half = 1.96 * (1.0 * hits_M - beside_M).std() / 200**0.5
    assert (once.low, once.high) == pytest.approx((once.change - half, once.change + half), abs=0.01)
    assert MeanChange.between(np.tile(hits_M, (3, 1)), np.tile(beside_M, (3, 1))) == pytest.approx(once)
    assert MeanChange.between(hits_M[None], hits_M[None]) == (0, 0, 0)


def test_what_cannot_be_set_against_a_start_is_refused(entry_point, tmp_path):
    best = tmp_path / "checkpoints/best.ckpt"
    for pattern in (f"{tmp_path}/*.ckpt", None):
        with pytest.raises(MameLabError, match=f"benchmark.checkpoints={re.escape(str(pattern))} names no file"):
            by_start(pattern)
    entry_point("train", tmp_path, *TINY, "mame.r=20")
    with pytest.raises(MameLabError, match=r"started from model.weights=None: give runs"):
        by_start(str(best))

    tuned = checkpoint.read(best)
    model, data = load(ModelSettings(**tuned.config["model"])), SimpleNamespace(classes=["a", "b"])
    with pytest.raises(MameLabError, match="the model has 10 classes and the dataset 2"):
        run.points({str(best): [tuned]}, model, data, None)
    with pytest.raises(MameLabError, match=r"^model.weights=gone.ckpt does not exist"):
        run.points({"gone.ckpt": [tuned]}, model, data, None)
