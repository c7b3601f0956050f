"""benchmark=throughput runs through eval.py and says what it measured."""

import csv
from types import SimpleNamespace

import pytest
import torch
from commands import BENCHMARK
from families import build, images
from lightning.pytorch.plugins import Precision

from mame_lab import MameLabError
from mame_lab.benchmarks.throughput import run
from mame_lab.benchmarks.throughput.settings import Throughput
from mame_lab.measure import speed

TRAINER = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=Precision())


class Data:
    def sample(self, count):
        return images(count), None


def read(folder, name):
    with next(folder.rglob(name)).open() as file:
        return list(csv.DictReader(file))


def test_throughput_times_arms_in_turns(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path, *BENCHMARK, "benchmark=throughput", "benchmark.r=8", "benchmark.batch_sizes=[1,3]",
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
    monkeypatch.setattr(run, "compile_models", lambda *models, graphs: compiled.extend(models))
    monkeypatch.setattr(run, "check_compiles", lambda *arguments: None)
    model = build("vit")
    model.register_forward_pre_hook(lambda module, inputs: forwards.append((len(inputs[0]), module in compiled)))
    settings = Throughput(methods=["tome"], r=8, batch_sizes=[1, 3], compiled=True)
    rows = list(run.rows(settings, model, Data(), TRAINER))
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


def test_throughput_of_a_threshold_padded_and_packed_and_compiled_padded(entry_point, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "compile_models", lambda *models, graphs: None)
    entry_point("eval", tmp_path, *BENCHMARK, "benchmark=throughput", "benchmark.tau=0.5", "benchmark.batch_sizes=[4]",
                "benchmark.rounds=3", "benchmark.methods=[ward]", "benchmark.compiled=true")  # fmt: skip
    rows = {row["arm"]: row for row in read(tmp_path, "throughput.csv")}
    padded_compiled = ["unmerged compiled", "ward(tau=0.5) compiled"]
    assert list(rows) == ["unmerged", "ward(tau=0.5)", "ward(tau=0.5, batching=packed)", *padded_compiled]
    padded, packed = rows["ward(tau=0.5)"], rows["ward(tau=0.5, batching=packed)"]
    assert float(padded["padded"]) < float(padded["ideal"]) == pytest.approx(float(packed["ideal"]))
    assert float(packed["padded"]) > float(padded["padded"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["mema", "ward"]}, r"benchmark.methods=\['mema'\] is not known: choose from ward, mame, tome, "),
        ({"tau": 0.9}, r"benchmark.tau=0.9 is a threshold, and benchmark.methods=\['tome'\] need a budget: leave"),
    ],
)
def test_what_cannot_be_timed_is_refused_at_configuration(settings, message):
    with pytest.raises(MameLabError, match=message):
        Throughput(**settings)


def test_where_nothing_compiles_the_key_of_the_benchmark_is_named(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_: 1 / 0)
    settings = Throughput(methods=["tome"], r=8, batch_sizes=[1], compiled=True)
    with pytest.raises(MameLabError, match=r"^benchmark.compiled=true does not work .* set benchmark.compiled=false$"):
        next(run.rows(settings, build("vit"), Data(), TRAINER))
