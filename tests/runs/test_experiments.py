"""Every experiment composes; a published claim also says what it takes, and runs on stand-ins."""

import re
from pathlib import Path

import clips
import pytest
import torch
from commands import ROOT, SD_MINI, TINY, typed
from hydra.errors import ConfigCompositionException

from mame_lab.measure.result import Result
from mame_lab.runs import cli, config
from mame_lab.solver import solve

ALL = sorted((ROOT / "conf/experiment").glob("*.yaml"))
PATHS = [path for path in ALL if "# Published:" in path.read_text()]
OURS = [path for path in ALL if path not in PATHS and path.stem != "debug"]
FIELDS = ["Command", "Weights", "Data", "Published", "Measured"]
SMALL = ["mame.blocks=3", *(override for override in TINY if not override.startswith("model."))]
RANDOM = ["model.pretrained=false", "model.weights=null", "dataset=digits", "dataset.batch_size=16"]
# The same family, but tiny and random, on bundled data.
STAND_INS = {
    "timm": [
        *("++model.args.depth=4", "++model.args.embed_dim=16", "++model.args.num_heads=2", "++model.args.patch_size=4"),
        *("model.img_size=32", "model.num_classes=10", *RANDOM, *SMALL),
    ],
    "open_clip": ["model.name=tiny-siglip", "model.img_size=128", *RANDOM, *SMALL],
    "transformers": ["model=videomae_mini", "model.args.num_hidden_layers=4", "dataset=moving_digits", *SMALL],
    "diffusers": [*SD_MINI, "trainer.precision=32-true"],
}
JUDGES = {"open_clip": "zero-shot", "diffusers": "images"}


def header(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^# (\w+): +(.+)$", path.read_text(), re.MULTILINE))


def command(path: Path, key: str = "Command") -> tuple[str, list[str]]:
    """train or eval, and the overrides."""
    entry, overrides = re.fullmatch(r"python (train|eval)\.py (.+)", header(path)[key]).groups()
    return entry, overrides.split()


def typed_by(path: Path, key: str = "Command") -> config.Config:
    entry, overrides = command(path, key)
    return typed(entry, *overrides)


def test_there_is_one_for_each_model_of_the_claims():
    names = {path.stem for path in PATHS}
    free = {f"{model}_training_free" for model in ("deit_b", "deit_s", "mae_b", "mae_l", "mae_h")}
    more = {
        "vit_b_last_layer",
        "vit_ti_from_scratch",
        "videomae_l_kinetics",
        "siglip2_b_512_zero_shot",
        "sd21_synthesis",
    }
    assert free | more <= names


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_header_says_what_it_takes_and_what_to_expect(path):
    said = header(path)
    assert [key for key in said if key in FIELDS] == FIELDS
    assert f"experiment={path.stem}" in command(path)[1]
    assert re.search(r"\d %|-> \d", said["Published"])
    assert re.search(r"\d|not run here: needs", said["Measured"])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_commands_of_the_header_compose(path):
    run = typed_by(path)
    if not run.generates:
        assert run.dataset.name in ("imagenet", "kinetics400")
        assert run.dataset.root == "FOLDER"
    assert run.mame.method == "mame"
    assert (run.mame.r if run.generates else run.mame.flops) < 1
    assert (run.model.weights == "FILE") is header(path)["Weights"].startswith("FILE is")
    for key in {"Before", "Unmerged"} & set(header(path)):
        plain = typed_by(path, key)
        assert plain.mame.schedule_for(12).off
        assert plain.model.name == run.model.name


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_own_compose_too(path):
    run, before = typed_by(path), typed_by(path, "Before")
    assert run.mame.has_target
    assert before.mame.schedule_for(12).off
    assert run.finetune.cache is before.finetune.cache is True
    assert (run.model.weights, before.model.weights) == ("CKPT", "FILE")


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_on_stand_ins(path, entry_point, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(solve, "CALIBRATION_IMAGES", 2)
    entry, overrides = command(path)
    own = [override for override in overrides if override.startswith("experiment=")]
    asked = typed(entry, *own)
    if asked.model.family == "open_clip":
        clips.register(tmp_path_factory.mktemp("open_clip"))
        monkeypatch.setenv("MAME_LAB_CACHE", str(tmp_path / "cache"))
    entry_point(entry, tmp_path, *own, *STAND_INS[asked.model.family])
    result = Result.load(tmp_path / "result.json")
    assert result.flop_ratio == pytest.approx(asked.mame.flops or 0.6, abs=0.2)
    assert result.evaluated_by == JUDGES.get(asked.model.family, "classifier")
    if not asked.generates:
        assert result.conditions.dtype == asked.trainer.precision


@pytest.mark.parametrize(("key", "timed"), [("Command", "train"), ("Evaluate", "eval")])
def test_debug_takes_a_batch_and_looks_for_anomalies(entry_point, tmp_path, monkeypatch, capsys, key, timed):
    entry, overrides = command(ROOT / "conf/experiment/debug.yaml", key)
    assert entry == timed
    asked, real = [], torch.autograd.set_detect_anomaly
    monkeypatch.setattr("torch.autograd.set_detect_anomaly", lambda mode: asked.append(mode) or real(mode))
    entry_point(entry, tmp_path, *overrides, *(override for override in TINY if override.startswith("model.")))
    assert Result.load(tmp_path / "result.json").merged.top1.total == 16
    assert not list(tmp_path.glob("checkpoints/*"))
    assert "Epoch" not in capsys.readouterr().out
    assert (True in asked) == (entry == "train")


def test_evaluating_a_claim_of_training_is_refused():
    with pytest.raises(ConfigCompositionException) as raised:
        typed("eval", "experiment=vit_b_last_layer")
    assert "Could not override 'finetune'" in cli.explain(raised.value)
