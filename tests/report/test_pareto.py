from hypothesis import given
from hypothesis import strategies as st
from made import make_result

from mame_lab.report.numbers import numbers
from mame_lab.report.pareto import AXES, front, models, optimal
from mame_lab.report.runs import Run

SPEED, COST = AXES
few = st.integers(0, 4).map(float)  # so that ties are common


def dominates(q, p):
    return q[0] >= p[0] and q[1] >= p[1] and q != p


@given(st.lists(st.tuples(few, few)))
def test_the_front_is_what_nothing_dominates(points):
    kept = front(points)
    assert len(kept) == len(points)
    members = [p for p, keep in zip(points, kept, strict=True) if keep]
    for p, keep in zip(points, kept, strict=True):
        assert keep != any(dominates(q, p) for q in points)
        assert keep or any(dominates(member, p) for member in members)
    assert bool(members) == bool(points)


def runs(*results):
    return [Run(str(i), {}, result) for i, result in enumerate(results)]


def names(found):
    return ["".join(run.name for run in model.runs) + ("" if model.merged else "u") for model in found]


def test_fewer_gflops_and_more_speed_are_better():
    cheap, fast = make_result(800, 1100, 2.0), make_result(800, 2000, 3.0)
    found = models(runs(cheap, fast))
    assert names(optimal(found, SPEED)) == ["1", "01u"]
    assert names(optimal(found, COST)) == ["0", "01u"]


def test_a_run_that_an_unmerged_model_beats_is_not_optimal():
    found = models(runs(make_result(810, 900, 5.0)))
    assert names(optimal(found, SPEED)) == names(optimal(found, COST)) == ["0u"]


def test_without_an_accuracy_nothing_is_optimal():
    assert names(optimal(models(runs(make_result(None), make_result(700, 3000))), SPEED)) == ["1", "1u"]


def test_unmerged_models_come_once_for_each_weights_and_conditions_at_their_median_speed():
    timed = [make_result(), make_result(), make_result()]
    for result, speed in zip(timed, (900.0, 1100.0, 1000.0), strict=True):
        object.__setattr__(result.unmerged, "samples_per_s", speed)
    found = models(runs(*timed, make_result(weights="ffffffffffff"), make_result(dtype="bf16-mixed")))
    assert names(found) == ["0", "1", "2", "3", "4", "012u", "3u", "4u"]
    assert found[5].arm.samples_per_s == 1000.0


def test_numbers_are_those_of_the_result():
    merged, unmerged = models(runs(make_result(772, 12345.6, 0.00173)))
    assert list(numbers(merged).values()) == [
        "77.2 % [74.5, 79.7]",
        "-3.8 points [-5.8, -1.8]",
        "12.35x",
        "12,346",
        "0.00173",
        "61 of 100",
        "-",
        "-",
    ]
    assert list(numbers(unmerged).values()) == [
        "81.0 % [78.5, 83.3]",
        "-",
        "-",
        "1,000",
        "4.00",
        "100 of 100",
        "-",
        "-",
    ]
    assert list(numbers(models(runs(make_result(None)))[0]).values())[:2] == ["-", "-"]
