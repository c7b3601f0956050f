"""The curve over the budget: what `eval.py` measures at each one alone, all timed in turns."""

import csv
from types import SimpleNamespace

import pytest
import torch
from commands import BENCHMARK, TINY
from families import build, images
from lightning.pytorch.plugins import Precision

from mame_lab import MameLabError
from mame_lab.benchmarks.budgets import run
from mame_lab.benchmarks.budgets.run import BudgetPoint, figure
from mame_lab.benchmarks.budgets.settings import Budgets
from mame_lab.measure import speed
from mame_lab.measure.fidelity import Distance
from mame_lab.measure.paired import PairedHits
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import Result
from mame_lab.merging import ToMe, Ward

CURVE = [
    *BENCHMARK,
    "benchmark=budgets",
    "benchmark.rounds=2",
    "benchmark.batch_size=4",
    "mame=tome",
    "mame.blocks=[0,1]",
]


def read(folder):
    with next(folder.rglob("budgets.csv")).open() as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


def test_each_budget_is_judged_as_if_it_were_alone(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path / "curve", *CURVE, "mame.schedule=linear", "benchmark.r=[0,20,0.3]")
    rows = read(tmp_path / "curve")
    assert list(rows) == ["unmerged", "r=0", "r=20", "r=0.3"]
    assert [int(row["tokens"]) for row in rows.values()] == [100, 100, 60, 50]
    assert [rows["r=0"][key] for key in ("agreement", "cost")] == ["1.0", "1.0"]
    table = capsys.readouterr().out
    assert "merging tome(r of the row, schedule=linear, blocks=[0, 1])" in " ".join(table.split())
    assert max(len(line) for line in table.splitlines() if "%" in line) <= 80
    assert next(tmp_path.rglob("budgets.png")).stat().st_size > 10_000

    alone = [*TINY, "mame=tome", "mame.blocks=[0,1]", "mame.schedule=linear", "mame.r=20"]
    entry_point("eval", tmp_path / "alone", *alone)
    result, row = Result.load(tmp_path / "alone/result.json"), rows["r=20"]
    low, high = result.merged.top1.interval
    expected = [result.merged.top1.value, low, high, result.agreement.value, result.flop_ratio]
    assert [float(row[key]) for key in ("top1", "top1_low", "top1_high", "agreement", "cost")] == pytest.approx(
        expected
    )
    assert float(rows["unmerged"]["top1"]) == result.unmerged.top1.value


def test_a_backbone_is_judged_by_its_features(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path, *CURVE, "benchmark.r=[10]", "model.num_classes=0", "dataset.num_workers=0")
    rows = read(tmp_path)
    assert rows["r=10"]["agreement"] == ""
    assert 0 < float(rows["r=10"]["top1"]) < 1


@pytest.fixture
def trainer():
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(strategy=strategy, precision_plugin=Precision(), world_size=1)


def test_speed_is_measured_in_turns(monkeypatch, trainer):
    """On a machine on which every arm takes its time; one round is disturbed."""
    took, timed = {"unmerged": 4.0, "r=2": 2.0, "r=0.25": 1.0}, []

    def time_interleaved(arms, *_, **limits):
        timed.append((list(arms), [len(call()) for call in arms.values()], limits))
        return {arm: [took[arm], took[arm], 9.0] for arm in arms}

    def compare(models, *_):
        merged = [name for name in models if name != "unmerged" and "." not in name]
        distances = {name: Distance((hits, 4), 0.1, 0.1) for name, hits in zip(merged, (3, 1), strict=True)}
        return {key: {"top1": torch.tensor([True, key == "unmerged"])} for key in models}, distances

    monkeypatch.setattr(speed, "time_interleaved", time_interleaved)
    monkeypatch.setattr(run, "compare", compare)
    settings = Budgets(r=[2, 0.25], batch_size=3, rounds=7)
    arms = run.at_budgets(settings, build("vit"), Ward(blocks=1))
    found = run.points(settings, arms, SimpleNamespace(sample=lambda count: (images(count), None)), trainer)
    assert timed == [(list(took), [3, 3, 3], {"max_rounds": 7, "min_rounds": 7})]
    assert [(p.arm, p.tokens, p.samples_per_s, p.speedup) for p in found] == [
        ("unmerged", 65, 0.75, 1.0), ("r=2", 63, 1.5, 2.0), ("r=0.25", 49, 3.0, 4.0)
    ]  # fmt: skip
    assert [p.top1 for p in found] == [Proportion(2, 2), Proportion(1, 2), Proportion(1, 2)]
    assert [p.change for p in found] == [None] + [PairedHits(both=1, gained=0, lost=1, total=2).change] * 2
    assert [p.agreement for p in found] == [None, Proportion(3, 4), Proportion(1, 4)]
    assert found[0].cost == 1 > found[1].cost > found[2].cost


def test_the_picture_shows_the_intervals():
    unmerged = BudgetPoint("unmerged", Proportion(90, 100), None, None, 1.0, 65, 10.0, 1.0)
    change = PairedHits(both=78, gained=2, lost=12, total=100).change
    merged = BudgetPoint("r=8", Proportion(80, 100), change, Proportion(85, 100), 0.5, 33, 20.0, 2.0)
    (axes,) = figure([unmerged, merged]).axes
    (bars,) = axes.containers
    (low, high) = bars.lines[2][0].get_segments()[0]
    assert (low[0], bars.lines[0].get_ydata().tolist()) == (2.0, [80.0])
    assert (low[1] / 100, high[1] / 100) == pytest.approx((0.9 + change.low, 0.9 + change.high))
    assert axes.lines[0].get_ydata() == [90.0, 90.0]


@pytest.mark.parametrize(
    ("settings", "method", "line"),
    [
        ({"r": [8, 60]}, Ward(), r"benchmark.r=\[8, 60\]: mame.r=60 is too large for block 0"),
        ({"r": [[1, 2, 3]]}, Ward(), r"benchmark.r=\[\[1, 2, 3\]\]: \[1, 2, 3\] is no budget"),
        ({"r": [None]}, ToMe(), r"benchmark.r=\[None\]: None is no budget"),
        ({"r": []}, Ward(), r"benchmark.r=\[\] holds no budget"),
        ({"rounds": 0}, Ward(), "benchmark.rounds=0 is not positive"),
    ],
)
def test_what_is_wrong_is_said(settings, method, line):
    with pytest.raises(MameLabError, match=f"^{line}"):
        run.at_budgets(Budgets(**settings), build("vit"), method)


def test_it_runs_in_one_process_and_judges_the_classes_of_the_data(trainer, tmp_path):
    data = SimpleNamespace(classes=["a", "b"])
    with pytest.raises(MameLabError, match="the model has 7 classes and the dataset 2"):
        run.run(Budgets(), build("vit"), Ward(), data, trainer, tmp_path)
    trainer.world_size = 2
    with pytest.raises(MameLabError, match="benchmark=budgets times one device, here are 2"):
        run.run(Budgets(), build("vit"), Ward(), data, trainer, tmp_path)
