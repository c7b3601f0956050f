"""What an earlier version called otherwise: command lines are told the new name, checkpoints still work."""

import pytest
import torch
from commands import PHOTOS, TINY, typed, values
from hydra.errors import HydraException

from mame_lab import MameLabError
from mame_lab.measure.result import Result
from mame_lab.models.renames import KEYS, upgraded
from mame_lab.runs import cli

SMALL = [*TINY, *PHOTOS, "dataset.batch_size=8", "model.num_classes=null"]
RUN = [*SMALL, "mame=mame", "mame.flops=0.9"]
GIVEN = {
    "mame.batch": (["mame.batch=packed"], ("train", "eval")),
    "dataset.broken": (["dataset=kinetics400", "dataset.root=x", "dataset.broken=skip"], ("train", "eval")),
    "finetune.budgets": (["finetune.budgets=[4]"], ("train",)),
    "benchmark.batch": (["benchmark=denoiser", "benchmark.batch=1"], ("eval",)),
}


@pytest.mark.parametrize("key", KEYS)
def test_an_old_key_is_told_its_new_name(key):
    overrides, entries = GIVEN[key]
    for entry in entries:
        with pytest.raises(HydraException) as error:
            values(entry, *overrides)
        assert cli.explain(error.value) == f"{key} is called {KEYS[key]} now: write that"


@pytest.mark.parametrize("entry", ["train", "eval"])
def test_an_old_schedule_is_told_its_new_name(entry):
    with pytest.raises(MameLabError, match=r"^mame.schedule=adaptive is called mame.solve=adaptive now"):
        typed(entry, "mame.flops=0.5", "mame.schedule=adaptive")


@pytest.mark.parametrize("entry", ["train", "eval"])
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("mame=paper", "mame=mame", "mame=paper is called mame=mame now"),
        ("mame.method=paper", "mame=mame", "mame=paper is called mame=mame now"),
        ("dataset=natural", "dataset=sample_photos", "dataset=natural is called dataset=sample_photos now"),
    ],
)
def test_an_old_choice_is_the_new_one_and_the_log_says_so(caplog, entry, old, new, told):
    assert typed(entry, old) == typed(entry, new)
    assert told in caplog.text


def test_an_old_schedule_of_a_checkpoint_is_the_new_solve():
    asked = {"method": "paper", "flops": 0.5, "schedule": "adaptive", "batch": "packed"}
    new = {"method": "mame", "flops": 0.5, "schedule": None, "solve": "adaptive", "batching": "packed"}
    given = {"mame": dict(asked), "asked": dict(asked), "finetune": {"budgets": [4]}, "dataset": {"broken": "skip"}}
    renamed = {"mame": new, "asked": new, "finetune": {"random_r": [4]}, "dataset": {"on_broken": "skip"}}
    assert upgraded(given) == renamed
    assert upgraded(renamed) == renamed
    assert given["mame"] == asked


def as_before(config):
    """The configuration of a checkpoint as the version before the new names wrote it."""
    for part in (config["mame"], config["asked"]):
        part["batch"] = part.pop("batching")
        part["method"] = "paper"
        del part["solve"]
    config["dataset"]["name"] = "natural"
    config["finetune"]["budgets"] = config["finetune"].pop("random_r")
    del config["callbacks"], config["trainer"]["detect_anomaly"]


def test_a_checkpoint_of_before_is_evaluated_resumed_and_started_from(entry_point, tmp_path, capsys):
    run = tmp_path / "run"
    entry_point("train", run, *RUN)
    for path in (run / "checkpoints").iterdir():
        content = torch.load(path)
        as_before(content["config"])
        torch.save(content, path)
    best = run / "checkpoints/best.ckpt"
    machine = [override for override in TINY if override.startswith(("trainer", "speed"))]
    entry_point("eval", tmp_path / "eval", *machine, f"ckpt={best}")
    trained, evaluated = (Result.load(folder / "result.json") for folder in (run, tmp_path / "eval"))
    assert evaluated.merged.top1 == trained.merged.top1
    assert evaluated.merged.tokens == trained.merged.tokens
    capsys.readouterr()
    entry_point("train", run, *RUN, "resume=auto", "trainer.max_epochs=2")
    assert "Going on from" in capsys.readouterr().out
    config = torch.load(run / "checkpoints/last.ckpt")["config"]
    assert (config["mame"]["method"], config["dataset"]["name"]) == ("mame", "sample_photos")
    assert (config["asked"]["method"], config["asked"]["flops"]) == ("mame", 0.9)
    with pytest.raises(MameLabError, match=r"made with mame.method=mame, and this run has mame.method=ward"):
        entry_point("train", run, *SMALL, "mame.flops=0.9", "resume=auto", "trainer.max_epochs=2")
    entry_point("train", tmp_path / "new", *SMALL, "mame.r=10", f"model.weights={best}")
