"""train.py and eval.py as their user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY
from PIL import Image
from safetensors.torch import save_file

from mame_lab import MameLabError
from mame_lab.measure.result import Result

BACKBONE = {
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 2,
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 0,
    "init_values": 0.5,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two class folders of small images."""
    for colour, light in (("dark", 60), ("bright", 250)):
        (tmp_path / "images" / colour).mkdir(parents=True)
        for number in range(30):
            image = Image.effect_noise((24, 40), light).convert("RGB")
            image.save(tmp_path / "images" / colour / f"{number}.png")
    return tmp_path / "images"


def test_train_then_evaluate_the_checkpoint_at_another_budget(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path / "run", *TINY, "mame.r=10", "finetune=last_layer")
    table = capsys.readouterr().out
    for word in ("What trains", "blocks.2", "Merged against unmerged", "top-1", "samples/s", "FLOP-ideal", "seed 0"):
        assert word in table
    trained = Result.load(tmp_path / "run/result.json")
    assert [round(t) for t in trained.merged.tokens] == [90, 80, 80]
    assert trained.merged.train_samples_per_s > 0
    assert trained.merged.top1.total == 32
    assert trained.top1_change.value == pytest.approx(trained.merged.top1.value - trained.unmerged.top1.value)
    assert trained.top1_change.low <= trained.top1_change.value <= trained.top1_change.high
    assert 0 < json.loads((tmp_path / "run/result.json").read_text())["top1_change"]["p"] <= 1
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") >= 2
    best = tmp_path / "run/checkpoints/best.ckpt"
    assert best.exists()
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert torch.load(best, weights_only=True)["config"]["mame"]["r"] == 10

    machine = [override for override in TINY if override.split(".")[0] in ("trainer", "speed")]
    entry_point("eval", tmp_path / "features", *machine, f"ckpt={best}", "model.num_classes=0")
    assert Result.load(tmp_path / "features/result.json").evaluated_by == "k-NN"
    entry_point("eval", tmp_path / "same", *machine, f"ckpt={best}")
    entry_point("eval", tmp_path / "other", *machine, f"ckpt={best}", "mame.r=20")
    same, other = (Result.load(tmp_path / name / "result.json") for name in ("same", "other"))
    assert same.merged.top1 == trained.merged.top1
    assert same.unmerged.top1 == other.unmerged.top1 == trained.unmerged.top1
    assert same.conditions.weights == trained.conditions.weights
    assert [round(t) for t in other.merged.tokens] == [80, 60, 60]
    assert other.merged.gflops < same.merged.gflops < same.unmerged.gflops == other.unmerged.gflops


def test_off_is_exact_and_random_weights_are_told(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path, *TINY[:-1], "speed.cost_samples=1", "mame=off")
    assert "weights are random" in capsys.readouterr().out
    result = Result.load(tmp_path / "result.json")
    assert (result.agreement.value, result.kl, result.feature_error, result.flop_ratio) == (1, 0, 0, 1)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_counts_every_image(entry_point, tmp_path, precision):
    tiny = [override for override in TINY if "limit_test" not in override]
    entry_point("eval", tmp_path, *tiny, "mame.r=10", f"trainer.precision={precision}")
    result = Result.load(tmp_path / "result.json")
    assert result.merged.top1.total == result.unmerged.scores["top5"].total == result.agreement.total == 359
    assert result.conditions.dtype == precision


def test_a_run_that_saves_nothing_keeps_its_own_weights(entry_point, tmp_path):
    entry_point("train", tmp_path, *TINY)
    stale = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    entry_point("train", tmp_path, *TINY, "trainer.fast_dev_run=true", "model.args.embed_dim=24")
    assert Result.load(tmp_path / "result.json").conditions.weights
    again = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert again["global_step"] == stale["global_step"]


def backbone(path: Path, **changes) -> list[str]:
    """Weights of a headless backbone in a file, and the overrides that load it."""
    arguments = BACKBONE | changes
    save_file(timm_backbone(arguments).state_dict(), path)
    own = [f"+model.args.{key}={value}" for key, value in arguments.items() if key not in ("img_size", "num_classes")]
    return ["model=dinov2_s", f"model.img_size={arguments['img_size']}", f"model.weights={path}", *own]


def timm_backbone(arguments: dict):
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_small_patch14_dinov2", **arguments)


def test_a_backbone_is_evaluated_by_knn_and_gets_a_head_in_training(entry_point, tmp_path, folder, capsys):
    settings = [*TINY[4:], *backbone(tmp_path / "w.safetensors"), "dataset=imagefolder", f"dataset.root={folder}"]
    settings += ["dataset.num_workers=0", "dataset.batch_size=24"]
    entry_point("eval", tmp_path / "eval", *settings, "mame.r=2")
    result = Result.load(tmp_path / "eval/result.json")
    assert result.evaluated_by == "k-NN"
    assert result.merged.top1.total == result.unmerged.top1.total == 12
    assert result.kl is None
    assert result.feature_error > 0
    entry_point("train", tmp_path / "train", *settings, "mame.r=2", "finetune=head")
    assert "The head is new" in capsys.readouterr().out
    assert Result.load(tmp_path / "train/result.json").evaluated_by == "classifier"


def test_real_pretrained_model_with_random_weights_runs_through(entry_point, tmp_path):
    entry_point(
        "train", tmp_path, "model=vit_ti", "model.pretrained=false", "mame.r=8", "finetune=last_layer",
        "trainer.fast_dev_run=true", "trainer.accelerator=cpu", "dataset.batch_size=2", "speed.batch_size=2",
        "speed.cost_samples=1",
    )  # fmt: skip
    assert Result.load(tmp_path / "result.json").merged.tokens[-1] == 197 - 8 * 8


def test_pictures_and_the_effect_of_the_batch(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path / "union", *TINY, "mame.batching=union", "mame.tau=0.5", "visualize=2")
    assert "mame.batching=union" in capsys.readouterr().out.partition("Measured on")[2].partition("share of GFLOPs")[0]
    pictures = {path.name for path in (tmp_path / "union").glob("*.png")}
    assert pictures == {"merging.png", "tokens.png", "union.png"}
    sizes = [line.split(",")[0] for line in (tmp_path / "union/union.csv").read_text().splitlines()]
    assert sizes == ["batch", "1", "4"]
    entry_point("eval", tmp_path / "plain", *TINY)
    assert "union" not in capsys.readouterr().out
    assert not list((tmp_path / "plain").glob("*.png"))
    with pytest.raises(MameLabError, match=r"visualize=2 .* mame=ward\(r=0.*choose a mame that merges"):
        entry_point("eval", tmp_path / "off", *TINY, "mame=off", "visualize=2")
    assert not (tmp_path / "off/result.json").exists()


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(entry_point, tmp_path):
    with pytest.raises(MameLabError, match=r"optim.lr=1e\+30: .*loss is not finite at step \d+"):
        entry_point("train", tmp_path, *TINY, "optim.lr=1e30", "trainer.max_epochs=3", "optim.warmup_epochs=0")
    for checkpoint in tmp_path.glob("checkpoints/*.ckpt"):
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def command(*arguments: str, cwd: Path, timeout: float = 250, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=timeout, **options)


def test_a_relative_path_is_from_where_the_command_was_given(folder, tmp_path):
    images = ["dataset=imagefolder", f"dataset.root={folder.name}", "dataset.batch_size=60"]
    done = command(str(ROOT / "eval.py"), *TINY, *images, "model.num_classes=2", "hydra.job.chdir=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/eval/*/result.json"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_run_proves_the_point(tmp_path):
    done = command(str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", cwd=tmp_path, timeout=800)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    top1 = result["merged"]["top1"]
    assert top1["hits"] / top1["total"] >= 0.95
    assert result["conditions"]["batch"] >= 64
    assert result["speedup"] > 1
