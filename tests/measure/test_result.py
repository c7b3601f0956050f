import io
import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from mame_lab.errors import MameLabError
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.paired import Change
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import ModelMeasurement, Result
from mame_lab.measure.result_table import result_table

CONDITIONS = Conditions(
    device="Example CPU",
    dtype="float32",
    batch=64,
    rounds=30,
    threads=2,
    seed=7,
    weights="0123456789ab",
    versions={"mame_lab": "0.1.0", "torch": "2.15.0"},
    commit="abcdef0-dirty",
    date="2026-11-22T12:00:00+00:00",
    more={"dataset": "[images]", "mame": "r=[8, 4]"},
)
MERGED = ModelMeasurement(
    gflops=2.0,
    tokens=[100.0, 78.4, 61.0],
    samples_per_s=1200.0,
    latency_ms_p50=53.0,
    latency_ms_p95=60.0,
    peak_memory_mb=31.0,
    train_samples_per_s=400.0,
    scores={"top1": Proportion(352, 360), "top5": Proportion(360, 360), "ece": 0.023},
)
UNMERGED = replace(
    MERGED,
    gflops=4.0,
    tokens=[100.0] * 3,
    samples_per_s=800.0,
    train_samples_per_s=300.0,
    scores=MERGED.scores | {"top1": Proportion(353, 360), "ece": 0.021},
)
RESULT = Result(
    merged=MERGED,
    unmerged=UNMERGED,
    evaluated_by="classifier",
    feature_error=0.0123,
    speedup=1.5,
    conditions=CONDITIONS,
    agreement=Proportion(358, 360),
    kl=0.0031,
    changes={"top1": Change(-1 / 360, -0.011, 0.006, 0.7), "top5": Change(0.0, 0.0, 0.0, 1.0)},
    train_speedup=1.33,
    train_batch=16,
)
HEADLESS = replace(
    RESULT,
    evaluated_by="k-NN",
    agreement=None,
    kl=None,
    train_speedup=None,
    merged=replace(MERGED, train_samples_per_s=None, peak_memory_mb=None, tokens=[257.0 - 16 * i for i in range(12)]),
    unmerged=replace(UNMERGED, train_samples_per_s=None, peak_memory_mb=None),
)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_equals_the_published_examples(hits, total, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert Proportion(hits, total).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_holds_the_value_is_symmetric_and_narrows(case):
    hits, total = case
    low, high = Proportion(hits, total).interval
    assert 0 <= low <= hits / total + 1e-15
    assert hits / total - 1e-15 <= high <= 1
    assert Proportion(total - hits, total).interval == pytest.approx((1 - high, 1 - low), abs=1e-12)
    more = Proportion(4 * hits, 4 * total).interval
    assert more[1] - more[0] < high - low


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 4), (-3, -2)])
def test_no_proportion_without_samples(hits, total):
    with pytest.raises(MameLabError, match="at least 1 sample"):
        Proportion(hits, total)


def test_a_result_needs_its_conditions():
    with pytest.raises(TypeError, match="conditions"):
        Result(merged=MERGED, unmerged=UNMERGED, evaluated_by="classifier", feature_error=0.0, speedup=1.0)  # pyright: ignore


def test_realised_is_speedup_over_ideal_speedup():
    assert (RESULT.flop_ratio, RESULT.ideal_speedup, RESULT.realised) == (0.5, 2.0, 0.75)
    off = replace(RESULT, merged=UNMERGED, speedup=0.98)
    assert off.realised == off.speedup


@pytest.mark.parametrize("result", [RESULT, HEADLESS])
def test_load_gives_back_what_was_saved(tmp_path, result):
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_result_of_an_older_version_is_read(tmp_path):
    old = Path(__file__).with_name("result_of_an_older_version.json")
    result = Result.load(old)
    assert (result.merged.top1, result.top1_change) == (Proportion(352, 360), Change(-1 / 360, -0.011, 0.006, 0.7))
    assert "ece" not in result.merged.scores
    result.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(old.read_text())


def test_what_is_not_finite_is_saved_as_not_measured(tmp_path):
    more = {"nested": [math.nan, {"deep": math.inf}], "path": Path("images")}
    result = replace(RESULT, kl=math.nan, speedup=-math.inf, conditions=replace(CONDITIONS, more=more))
    result.save(tmp_path / "result.json")
    json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    loaded = Result.load(tmp_path / "result.json")
    assert (loaded.kl, loaded.speedup, loaded.realised) == (None, None, None)
    assert loaded.conditions.more == {"nested": [None, {"deep": None}], "path": "images"}


def test_a_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    RESULT.save(path)
    monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: self.write_bytes(b"{") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        HEADLESS.save(path)
    assert Result.load(path) == RESULT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"merged": {"gflops": 1}, "unmerged": {}}', "null"])
def test_a_file_that_holds_no_result_is_named(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(MameLabError, match=r"result\.json is no result"):
        Result.load(path)


def test_metrics_are_flat_grouped_and_only_what_was_measured():
    metrics = RESULT.metrics()
    assert {name.partition("/")[0] for name in metrics} == {"test", "speed", "cost", "tokens"}
    expected = {
        "test/top1": 352 / 360,
        "test/top1_unmerged": 353 / 360,
        "test/top5": 1.0,
        "test/top1_change": -1 / 360,
        "test/top1_p": 0.7,
        "test/ece": 0.023,
        "test/ece_unmerged": 0.021,
        "test/agreement": 358 / 360,
        "test/kl": 0.0031,
        "test/feature_error": 0.0123,
        "speed/samples_per_s": 1200.0,
        "speed/samples_per_s_unmerged": 800.0,
        "speed/samples_per_s_total": 1200.0,
        "speed/processes": 1.0,
        "speed/speedup": 1.5,
        "speed/realised": 0.75,
        "speed/latency_ms_p50": 53.0,
        "speed/train_samples_per_s": 400.0,
        "speed/train_speedup": 1.33,
        "cost/gflops": 2.0,
        "cost/gflops_unmerged": 4.0,
        "cost/flop_ratio": 0.5,
        "cost/peak_memory_mb": 31.0,
        "tokens/block_00": 100.0,
        "tokens/block_01": 78.4,
    }
    assert expected.items() <= metrics.items()
    assert all(type(x) is float for x in metrics.values())
    lost = {name for name in metrics if name not in HEADLESS.metrics()}
    assert lost == {
        "test/agreement",
        "test/kl",
        "speed/train_speedup",
        *(f"{name}{arm}" for name in ("speed/train_samples_per_s", "cost/peak_memory_mb") for arm in ("", "_unmerged")),
    }
    assert "test/kl" not in replace(RESULT, kl=math.nan).metrics()


def printed(result, width):
    console = Console(width=width, file=io.StringIO())
    console.print(result_table(result))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_table_shows_both_sides_the_gain_and_the_conditions(width):
    text = printed(RESULT, width)
    lines = {line.split("  ")[0].strip(): " ".join(line.split()) for line in text.splitlines()}
    assert max(map(len, text.splitlines())) <= width
    assert lines["top-1"] == "top-1 97.8 % 98.1 % -0.3 points [-1.1, +0.6]"
    assert lines["top-5"] == "top-5 100.0 % 100.0 % +0.0 points [+0.0, +0.0]"
    assert lines["calibration error"] == "calibration error 2.3 % 2.1 % +0.2 points"
    assert lines["agreement"] == "agreement 99.4 % [98.0, 99.8]"
    assert lines["GFLOPs a sample"] == "GFLOPs a sample 2.00 4.00 0.50x"
    assert lines["tokens after blocks"] == "tokens after blocks 100 78 61 100 in all"
    assert lines["samples/s"] == "samples/s 1200 800 1.50x"
    assert lines["training, batch 16"] == "training, batch 16 400 300 1.33x"
    assert lines["FLOP-ideal realised"] == "FLOP-ideal realised 75 % of 2.00x"
    words = " ".join(text.split())
    for condition in ("Example CPU", "float32", "batch 64", "2 threads", "30 rounds", "seed 7", "weights 0123456789ab"):
        assert condition in words
    for condition in (
        "commit abcdef0-dirty",
        "dataset [images]",
        "mame r=[8, 4]",
        "torch 2.15.0",
        "2026-11-22T12:00:00",
    ):
        assert condition in words


def test_table_leaves_out_what_was_not_measured():
    text = printed(HEADLESS, 120)
    assert "k-NN" in text
    for quantity in ("agreement   ", "KL, nats", "training, batch", "peak memory", "None"):
        assert quantity not in text
    unlabelled = replace(RESULT, merged=replace(MERGED, scores={}))
    assert "Accuracy" not in printed(unlabelled, 120)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def conditions(**more):
    return gather_conditions("cpu", torch.bfloat16, 16, 5, None, "0123456789ab", **more)


def test_conditions_describe_this_process(repository):
    here = conditions(model="vit_mini")
    assert here.device.endswith("CPU")
    assert (here.dtype, here.batch, here.rounds, here.seed) == ("bfloat16", 16, 5, None)
    assert here.threads == torch.get_num_threads()
    assert torch.__version__.startswith(here.versions["torch"])
    assert here.versions.keys() >= {"python", "torch", "timm"}
    assert here.more == {"model": "vit_mini"}
    assert here.commit is None


def test_commit_says_whether_files_differ_from_it(repository):
    git("init")
    (repository / "a").write_text("1")
    git("add", "a")
    assert conditions().commit is None
    git("commit", "-m", "a")
    git("tag", "-a", "v1", "-m", "a release")
    head = git("rev-parse", "--short", "HEAD")
    assert conditions().commit == head
    (repository / "a").write_text("2")
    assert conditions().commit == f"{head}-dirty"


def test_no_git_is_no_error(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert conditions().commit is None


class Weights(nn.Module):
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


A, B = torch.arange(6.0).reshape(2, 3), torch.tensor(3)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Weights(b=B, a=A), True),
        (Weights(a=A.T.contiguous().T, b=B), True),
        (Weights(a=A + 1e-6, b=B), False),
        (Weights(a=A.to(torch.bfloat16), b=B), False),
        (Weights(a=A.view(torch.int32), b=B), False),
        (Weights(a=A.reshape(3, 2), b=B), False),
        (Weights(a=A, c=B), False),
        (Weights(a=A), False),
    ],
)
def test_weights_hash_names_names_shapes_types_and_values(other, same):
    mine = weights_hash(Weights(a=A, b=B))
    assert mine == "f2581034ed57"  # as checkpoints hold it
    assert (weights_hash(other) == mine) is same
