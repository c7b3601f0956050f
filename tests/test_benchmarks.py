"""The benchmarks run through eval.py and say what they measured."""

import csv
from types import SimpleNamespace

import pytest
import torch
from families import build, images
from lightning.pytorch.plugins import Precision
from runs import TINY

from mame_lab import speed
from mame_lab.benchmarks import frontier, throughput
from mame_lab.benchmarks.frontier import REFERENCE, Point, figure, table
from mame_lab.benchmarks.settings import Frontier, Throughput
from mame_lab.errors import MameLabError
from mame_lab.merging import ToMe

TRAINER = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=Precision())


class Data:
    """Keeps what it is asked for."""

    def __init__(self):
        self.sampled = []

    def sample(self, count, split="test"):
        self.sampled.append((count, split))
        return images(count), None


def read(folder, name):
    with next(folder.rglob(name)).open() as file:
        return list(csv.DictReader(file))


def test_frontier_compares_at_equal_cost(entry_point, tmp_path):
    arms = ["ward:adaptive", "ward:calibrated", "ward:rising", "drop:constant"]
    entry_point("eval", tmp_path, *TINY, "benchmark=frontier", "benchmark.tome_r=[8]", "benchmark.tome_blocks=[3]",
                f"benchmark.arms=[{','.join(arms)}]", "benchmark.images=12", "benchmark.batch_size=5",
                "benchmark.calibration_images=6", "model.num_classes=0")  # fmt: skip
    found = {row["arm"]: row for row in read(tmp_path, "frontier.csv")}
    assert list(found) == [REFERENCE, *arms]
    tome = found[REFERENCE]
    for row in found.values():
        assert float(row["cost"]) == pytest.approx(float(tome["cost"]), abs=0.03)
        assert float(row["of_tome"]) == pytest.approx(float(row["error"]) / float(tome["error"]))
        assert float(row["error"]) > 0
    assert next(tmp_path.rglob("frontier.png")).stat().st_size > 10_000


def test_frontier_measures_on_test_and_calibrates_on_validation_images(monkeypatch):
    solved_on = []
    solve = lambda _, target, images: solved_on.append((target.schedule, len(images))) or ToMe(r=8)  # noqa: E731
    monkeypatch.setattr(frontier, "solve", solve)
    arms = ["ward:adaptive", "ward:calibrated", "ward:rising"]
    settings = Frontier(tome_r=[8], tome_blocks=[3], arms=arms, images=4, calibration_images=3)
    data = Data()
    list(frontier.points(settings, build("vit"), data, TRAINER))
    assert sorted(data.sampled) == [(3, "val"), (4, "test")]
    assert solved_on == [("adaptive", 4), ("calibrated", 3), ("rising", 3)]


def test_cost_and_error_do_not_depend_on_the_batch_size():
    in_one, in_two = (frontier.Measure(build("vit"), images(3), batch_size)(ToMe(r=8)) for batch_size in (3, 2))
    assert in_one == pytest.approx(in_two)


def test_throughput_times_arms_in_turns(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path, *TINY, "benchmark=throughput", "benchmark.r=8", "benchmark.batch_sizes=[1,3]",
                "benchmark.rounds=3", "benchmark.methods=[ward,tome]")  # fmt: skip
    rows = read(tmp_path, "throughput.csv")
    assert [(row["batch"], row["arm"]) for row in rows] == [
        (batch, arm) for batch in "13" for arm in ("unmerged", "ward(r=8)", "tome(r=8)")
    ]
    for row in rows:
        assert float(row["realised"]) == pytest.approx(float(row["speedup"]) / float(row["ideal"]))
        if row["arm"] != "unmerged":
            assert 0 < float(row["merging"]) < 1
            assert float(row["ideal"]) > 1
    assert "realised" in capsys.readouterr().out


def test_throughput_compares_like_with_like(monkeypatch):
    """On a machine on which every arm takes its time, whatever the batch; one round is disturbed."""
    tome = "tome(r=8)"
    took = {("unmerged", ""): 4.0, (tome, ""): 2.0, ("unmerged", "compiled"): 2.0, (tome, "compiled"): 0.5}
    compiled, forwards, ran = [], [], []

    def time_interleaved(arms, *_, **__):
        for arm, call in arms.items():
            forwards.clear()
            call()
            ran.append((arm, list(forwards)))
        return {arm: [seconds, seconds, 9.0] for arm, seconds in (took | {(tome, "steps"): 0.5}).items()}

    monkeypatch.setattr(speed, "time_interleaved", time_interleaved)
    monkeypatch.setattr(throughput, "compile_models", lambda *models: compiled.extend(models))
    model = build("vit")
    model.register_forward_pre_hook(lambda module, inputs: forwards.append((len(inputs[0]), module in compiled)))
    settings = Throughput(methods=["tome"], r=8, batch_sizes=[1, 3], compiled=True)
    rows = list(throughput.rows(settings, model, Data(), TRAINER))
    for batch, of_batch in zip((1, 3), (ran[:5], ran[5:]), strict=True):
        assert of_batch == [*((arm, [(batch, arm[1] == "compiled")]) for arm in took), ((tome, "steps"), [])]
    assert [(row.arm, row.batch, row.samples_per_s, row.speedup, row.merging) for row in rows] == [
        (arm, batch, batch / seconds, speedup, merging)
        for batch in (1, 3)
        for arm, seconds, speedup, merging in [
            ("unmerged", 4.0, 1.0, None),
            (tome, 2.0, 2.0, 0.25),
            ("unmerged compiled", 2.0, 1.0, None),
            (f"{tome} compiled", 0.5, 4.0, None),
        ]
    ]


def test_a_table_has_a_row_an_arm_and_a_line_each():
    found = [Point(arm, arm, cost, 0.1 * cost, 1.0) for cost in (0.5, 0.8) for arm in (REFERENCE, "ward:rising")]
    assert table(found).row_count == 2
    assert len(table(found).columns) == 3
    (axes,) = figure(found).axes
    assert [line.get_label() for line in axes.lines] == [REFERENCE, "ward:rising"]
    assert axes.lines[0].get_xdata().tolist() == [0.5, 0.8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["ward"]}, "benchmark.arms=ward is not valid: write METHOD:SCHEDULE"),
        ({"arms": ["mame:rising"]}, "benchmark.arms=mame:rising is not valid"),
        ({"tome_r": [8]}, "differ in length"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(MameLabError, match=message):
        Frontier(**settings)


def test_throughput_of_a_threshold_padded_and_packed(entry_point, tmp_path):
    entry_point("eval", tmp_path, *TINY, "benchmark=throughput", "benchmark.tau=0.5", "benchmark.batch_sizes=[4]",
                "benchmark.rounds=3", "benchmark.methods=[ward]")  # fmt: skip
    rows = {row["arm"]: row for row in read(tmp_path, "throughput.csv")}
    assert list(rows) == ["unmerged", "ward(tau=0.5)", "ward(tau=0.5, batch=packed)"]
    padded, packed = rows["ward(tau=0.5)"], rows["ward(tau=0.5, batch=packed)"]
    assert float(padded["padded"]) < float(padded["ideal"]) == pytest.approx(float(packed["ideal"]))
    assert float(packed["padded"]) > float(padded["padded"])
