"""What merging loses at equal cost: three measures of every arm."""

import csv
from types import SimpleNamespace

import pytest
import torch
from commands import BENCHMARK
from families import build, images, inputs
from lightning.pytorch.plugins import Precision

from mame_lab.benchmarks.frontier import equal_cost, run
from mame_lab.benchmarks.frontier.arms import ARMS, REFERENCE, method_of
from mame_lab.benchmarks.frontier.charts import MEASURES, figure, table
from mame_lab.benchmarks.frontier.losses import Loss, Losses
from mame_lab.benchmarks.frontier.point import FrontierPoint
from mame_lab.benchmarks.frontier.settings import Frontier
from mame_lab.errors import MameLabError
from mame_lab.measure.paired import PairedHits
from mame_lab.merging import MaMe, ToMe, Ward
from mame_lab.models import apply, shared_copy

TRAINER = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=Precision())


class Data:
    """Keeps what it is asked for."""

    dataset = SimpleNamespace(name="made")

    def __init__(self, train=None, test=10):
        self.splits = SimpleNamespace(train=train, test=range(test))
        self.sampled = []

    def sample(self, count, split="test"):
        self.sampled.append((split, count))
        return images(count), torch.arange(count) % 2


def read(folder):
    with next(folder.rglob("frontier.csv")).open() as file:
        return list(csv.DictReader(file))


def test_arms_are_compared_at_equal_cost(entry_point, tmp_path, capsys):
    arms = ["ward:adaptive", "ward:geometric:unweighted"]
    entry_point("eval", tmp_path, *BENCHMARK, "benchmark=frontier", "benchmark.costs=[0.8,0.01]",
                f"benchmark.arms=[{','.join(arms)}]", "benchmark.images=12", "benchmark.batch_size=5",
                "benchmark.calibration_images=6", "benchmark.training_images=40", "model.num_classes=0")  # fmt: skip
    rows = read(tmp_path)
    assert [(row["arm"], row["asked"]) for row in rows] == [(a, c) for c in ("0.8", "0.01") for a in (REFERENCE, *arms)]
    reached, out_of_reach = rows[:3], rows[3:]
    tome = reached[0]
    for row in reached:
        assert float(row["cost"]) == pytest.approx(0.8, abs=0.03)
        for error, ratio in (("feature_error", "feature_ratio"), ("token_error", "token_ratio")):
            assert float(row[ratio]) == pytest.approx(float(row[error]) / float(tome[error]))
            assert float(row[error]) > 0
        change, unmerged = float(row["top1_change"]), float(row["top1_unmerged"])
        assert float(row["top1"]) - unmerged == pytest.approx(change)
        assert float(row["top1_low"]) <= change <= float(row["top1_high"])
        assert 0 < float(row["top1_p"]) <= 1
        assert (row["setting"] != "", row["reason"]) == (True, "")
    assert "prop_attn=False" in reached[2]["setting"]
    for row in out_of_reach:
        assert (row["cost"], row["feature_error"], row["top1"], row["setting"]) == ("", "", "", "")
        assert "mame.flops=0.01 is out of reach" in row["reason"]
    printed = " ".join(capsys.readouterr().out.split())
    for measure in MEASURES:
        assert (tmp_path / f"frontier_{measure.name}.png").stat().st_size > 10_000
        assert f"{measure.label}, and times the loss of" in printed


def test_it_measures_on_test_images_and_solves_on_validation_images(monkeypatch):
    solved_on = []
    solve = lambda _, target, images: solved_on.append((target.solve or target.schedule, len(images))) or ToMe(r=8)  # noqa: E731
    monkeypatch.setattr(equal_cost, "solve", solve)
    arms = ["ward:adaptive", "ward:linear", "ward:geometric"]
    settings = Frontier(costs=[0.7], arms=arms, images=4, calibration_images=3, training_images=9)
    data = Data(train=range(5))
    list(run.points(settings, build("vit"), data, TRAINER))
    assert sorted(data.sampled) == [("test", 4), ("train", 5), ("val", 3)], "no image twice"
    assert [on for on in solved_on if on[0] != "adaptive"] == [("constant", 3), ("linear", 3), ("geometric", 3)]
    assert {count for schedule, count in solved_on if schedule == "adaptive"} == {4}


@pytest.mark.parametrize("train", [None, range(1)])
def test_without_labelled_training_images_top1_is_left_out(train, capsys):
    settings = Frontier(costs=[0.7], arms=[], images=99)
    data = Data(train, test=3)
    (point,) = run.points(settings, build("vit"), data, TRAINER)
    assert ("test", 3) in data.sampled
    assert "Top-1 is left out: dataset=made" in capsys.readouterr().out
    assert (point.top1, point.top1_p, point.top1_ratio) == (None, None, None)
    assert point.feature_ratio == point.token_ratio == 1


def test_what_is_measured_is_kept_when_a_run_is_killed(monkeypatch, tmp_path):
    def points(*_):
        yield FrontierPoint(REFERENCE, 0.5, 0.5, 0.1, 1.0, 0.2, 1.0)
        kept.extend(read(tmp_path))
        raise KeyboardInterrupt

    kept = []
    monkeypatch.setattr(run, "points", points)
    with pytest.raises(KeyboardInterrupt):
        run.run(Frontier(), None, None, None, None, tmp_path)
    (row,) = kept
    assert (row["arm"], row["feature_error"], row["top1"]) == (REFERENCE, "0.1", "")


@torch.no_grad()
@pytest.mark.parametrize("method", [ToMe(r=8), MaMe(tau=0.8)], ids=str)
def test_the_token_error_is_that_of_a_loop(method):
    model, x = build("registers"), images(3)
    loss = Losses(model, x, batch_size=2)(method)
    unmerged, merged = (each.forward_features(x)[:, 5:] for each in (model, apply(shared_copy(model), method)))
    every = [patch for image in unmerged for patch in image]
    mean = sum(every) / len(every)
    spread = sum((patch - mean).norm() for patch in every) / len(every)
    moved = [(m - u).norm() for ms, us in zip(merged, unmerged, strict=True) for m, u in zip(ms, us, strict=True)]
    assert len(moved) == 3 * 64
    assert loss.token_error == pytest.approx(float(sum(moved) / len(moved) / spread))


@pytest.mark.parametrize("family", ["vit", "siglip", "hf_dinov2"])
def test_a_model_loses_nothing_against_itself(family):
    model, x = build(family).float(), inputs(family, 6).float()
    losses = Losses(model, x, batch_size=4)
    losses.fit_head(torch.arange(6) % 3, inputs(family, 9, seed=1).float(), torch.arange(9) % 3)
    cost, feature_error, token_error, top1 = losses(Ward(r=0))
    assert (cost, feature_error, token_error) == (1, 0, 0)
    assert (top1.difference, top1.p, top1.total) == (0, 1, 6)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.split(":")[0] not in ("ward", "mame")])
def test_every_default_arm_is_measured(arm):
    losses = Losses(build("vit").float(), images(2).float(), batch_size=2)
    loss = losses(equal_cost.solve_for(losses, method_of(arm, 0.6), images(2).float()))
    assert loss.cost == pytest.approx(0.6, rel=0.02)
    assert loss.feature_error > 0


def test_losses_do_not_depend_on_the_batch_size():
    in_one, in_two = (Losses(build("vit"), images(3), size)(ToMe(r=8)) for size in (3, 2))
    assert in_one[:3] == pytest.approx(in_two[:3])


def test_what_is_lost_is_set_beside_what_the_reference_loses():
    reference = Loss(0.5, 0.2, 0.4, PairedHits(both=50, gained=2, lost=12, total=100))
    assert Loss(0.5, 0.1, 0.8, PairedHits(both=57, gained=1, lost=5, total=100)).ratios(reference) == (0.5, 2, 0.4)
    assert reference.ratios(None) == (None, None, None)
    better = reference._replace(top1=PairedHits(both=60, gained=2, lost=2, total=100))
    assert reference.ratios(better) == (1, 1, None)


def test_a_threshold_is_mended_by_what_it_costs_on_all_images(monkeypatch):
    """Here a tenth more than on the few that it is solved on."""
    asked = []

    def solve(_, target, images):
        asked.append((target.flops, len(images)))
        return target

    monkeypatch.setattr(equal_cost, "solve", solve)
    losses = SimpleNamespace(model=None, images=torch.zeros(65, 1), cost=lambda method: 1.1 * method.flops)
    found = equal_cost.solve_for(losses, method_of("ward:adaptive", 0.5), calibration=None)
    assert asked == [(0.5, 22), (pytest.approx(0.5 / 1.1), 22)]
    assert found.flops == pytest.approx(0.5 / 1.1)


def some_points():
    arms = (REFERENCE, "ward:geometric", "ward:constant:unweighted")
    found = [
        FrontierPoint(arm, cost, cost, 0.1 * cost, 1.0, 0.2, 0.5, 0.6, 0.7, top1_p=0.01)
        for cost in (0.8, 0.5)
        for arm in arms
    ]
    return [*found[:-1], FrontierPoint(arms[2], 0.5, reason="out of reach")]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_table_has_a_row_an_arm_and_a_column_a_cost(measure):
    rows = table(some_points(), measure)
    names, light, heavy = ([*column.cells] for column in rows.columns)
    assert names == [REFERENCE, "ward:geometric", "ward:constant:unweighted"]
    assert heavy[2] == "-"
    assert light[0] == {"feature": "0.0800 1.00x", "tokens": "0.2000 0.50x", "top1": "60.0*"}[measure.name]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_plot_has_a_line_an_arm(measure):
    (axes,) = figure(some_points(), measure).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) - {"unmerged"} == {REFERENCE, "ward:geometric", "ward:constant:unweighted"}
    assert lines[REFERENCE].get_xdata().tolist() == [0.5, 0.8]
    assert lines["ward:constant:unweighted"].get_xdata().tolist() == [0.8]
    assert lines[REFERENCE].get_color() == "black"
    assert lines["ward:geometric"].get_color() == lines["ward:constant:unweighted"].get_color() != "black"
    if measure.percent:
        assert lines["unmerged"].get_ydata() == [70, 70]
        assert lines["ward:geometric"].get_ydata().tolist() == [60, 60]


def test_every_arm_is_drawn_in_its_own_way():
    found = [FrontierPoint(arm, 0.8, 0.8, 0.1) for arm in (*ARMS, REFERENCE)]
    (axes,) = figure(found, MEASURES[0]).axes
    looks = [
        (str(line.get_color()), line.get_linestyle(), line.get_marker(), str(line.get_markerfacecolor()))
        for line in axes.lines
    ]
    assert len(set(looks)) == len(looks) == len(ARMS) + 1


def test_arms_are_methods_with_a_schedule():
    assert method_of("ward:constant", 0.6) == Ward(flops=0.6, schedule="constant")
    assert method_of("tome:linear:unweighted", 0.6) == ToMe(flops=0.6, schedule="linear", prop_attn=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["ward"]}, "benchmark.arms=ward is not valid: write METHOD:SCHEDULE or"),
        ({"arms": ["ward:constant:published"]}, "benchmark.arms=ward:constant:published is not valid"),
        ({"arms": ["nothing:constant"]}, "benchmark.arms=nothing:constant is not valid: .* of ward, "),
        ({"arms": ["ward:steep"]}, "benchmark.arms=ward:steep is not valid: mame.schedule=steep is not known"),
        (
            {"arms": ["tome:adaptive"]},
            "benchmark.arms=tome:adaptive is not valid: mame.solve=adaptive is not for mame=tome",
        ),
        ({"costs": []}, r"benchmark.costs=\[\] is out of range"),
        ({"costs": [0.5, 1.0]}, r"benchmark.costs=\[0.5, 1.0\] is out of range"),
        ({"images": 0}, "benchmark.images=0 is not positive"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(MameLabError, match=message):
        Frontier(**settings)
