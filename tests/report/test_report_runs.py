import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import make_result, save_run

from mame_lab.errors import MameLabError
from mame_lab.report.numbers import numbers
from mame_lab.report.pareto import models
from mame_lab.report.runs import Run, common, differing, read, read_all, telling


def test_runs_are_read_in_the_order_of_their_numbers(sweep):
    runs = read_all([sweep])
    assert [run.name for run in runs] == ["0", "1", "2", "10", "11", "12"]
    assert [run.status for run in runs] == [*["finished"] * 4, "failed", "unfinished"]
    assert runs[0].overrides == {"dataset": "digits", "model": "s", "mame.r": "4"}
    assert runs[1].result == make_result(770, 2000, 2.0, "vit_s", weights="aaaaaaaaaaaa")
    assert runs[4].error == "mame.r='<i>no</i>' is not valid"


def test_each_run_comes_once_under_its_own_name(sweep, tmp_path):
    for name in ("a/0", "b/0", "b/left_out_0"):
        save_run(tmp_path / name)
    assert [run.name for run in read_all([tmp_path / "b", tmp_path / "a", tmp_path / "a" / "0"])] == [
        "a/0",
        "b/0",
        "b/left_out_0",
    ]
    assert [run.name for run in read_all([sweep / "10"])] == ["10"]


@pytest.mark.parametrize(("name", "named"), [("", "no run lies in or under"), ("missing", "missing is no folder")])
def test_no_runs_is_one_line(tmp_path, name, named):
    with pytest.raises(MameLabError, match=named) as error:
        read_all([tmp_path / name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"merged": [1], "unmerged": [2]}'])
def test_a_result_that_is_none_is_the_reason_of_a_failed_run(tmp_path, content):
    run = save_run(tmp_path / "0", "mame.r=8")
    (run / "result.json").write_bytes(content)
    found = read(run, "0")
    assert (found.status, found.overrides) == ("failed", {"mame.r": "8"})
    assert "result.json is no result" in str(found.error)


@pytest.mark.parametrize("content", [b"", b"- a: [", b"\xff", b"3", b"- [1]"])
def test_overrides_that_cannot_be_read_are_no_crash(tmp_path, content):
    run = save_run(tmp_path / "0", result=make_result())
    (run / ".hydra" / "overrides.yaml").write_bytes(content)
    found = read(run, "0")
    assert found.status == ("failed" if content else "finished")


def test_an_error_wins_over_the_result_of_an_earlier_start(tmp_path):
    found = read(save_run(tmp_path / "0", result=make_result(), error=""), "0")
    assert (found.status, found.error, found.result) == ("failed", "error.txt is empty", None)


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))
    else:
        yield path


SAVED = json.loads(make_result().to_json())


@pytest.mark.parametrize("path", list(leaves(SAVED)), ids=str)
def test_a_result_that_lost_a_number_fails_or_is_shown(tmp_path, path):
    run = save_run(tmp_path / "0")
    lost = json.loads(json.dumps(SAVED))
    inner = lost
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = None
    (run / "result.json").write_text(json.dumps(lost))
    for model in models([read(run, "0")]):
        numbers(model)


settings = st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("12")), max_size=4)


@given(settings)
def test_what_differs_and_what_is_common_are_all(settings):
    same = common(settings)
    assert all(each[key] == value for each in settings for key, value in same.items())
    assert {*same, *differing(settings)} == {key for each in settings for key in each}
    assert same.keys().isdisjoint(differing(settings))


def test_overrides_that_tell_runs_apart():
    one, two = Run("0", {"a": "1", "b": "2"}), Run("1", {"a": "1", "b": "3", "c": "4"})
    assert telling([one, two]) == ["b", "c"]
    assert telling([one]) == ["a", "b"]
