"""The benchmarks run through eval.py and say what they measured."""

import csv

import pytest
from runs import TINY

from mame_lab.benchmarks.frontier import REFERENCE, Point, figure, table
from mame_lab.benchmarks.settings import Frontier
from mame_lab.errors import MameLabError


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
