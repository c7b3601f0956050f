"""Training from what is kept of frozen blocks is the training that it replaces, and what is kept is never stale."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from commands import CACHED, PHOTOS, ROOT, TINY
from PIL import Image
from torch import nn

from mame_lab import MameLabError
from mame_lab.tasks.classification import Classification
from mame_lab.training.feature_cache import fingerprint

# train.py in a process that kills itself once it has written two files.
KILLED = """
import os, runpy, signal, sys
from mame_lab.training.feature_cache import compute, store
compute.FILE_BYTES = 3 * 101 * 16 * 4
write, count = store.Store.write, 0

def writing(self, *arguments):
    global count
    count += 1
    if count == 3:
        (self.folder / "000009.99.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *arguments)

store.Store.write = writing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RUN = [
    *(override for override in TINY if "limit" not in override and "max_epochs" not in override),
    *CACHED,
    *PHOTOS,
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
]


def outcome(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row[key]) for row in rows for key in ("train/loss", "val/loss") if row.get(key)]
    return losses, json.loads((folder / "result.json").read_text())["merged"]["top1"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune=last_layer", "mame.r=10"],
        ["finetune=last_layer", "mame.tau=0.6", "+model.args.drop_path_rate=0.5"],
        ["finetune=last_layer", "mame.tau=0.6", "mame.batching=packed", "+model.args.drop_path_rate=0.5"],
        ["finetune=head", "mame=off", "+model.args.drop_rate=0.3"],
    ],
    ids=["last_layer", "adaptive", "packed", "head"],
)
def test_a_run_from_the_cache_is_the_run_without(entry_point, tmp_path, overrides, capsys):
    entry_point("train", tmp_path / "without", *RUN, *overrides, "finetune.cache=false")
    entry_point("train", tmp_path / "with", *RUN, *overrides, "finetune.cache=true")
    assert "12 made now" in capsys.readouterr().out
    (losses, top1), (expected, expected_top1) = outcome(tmp_path / "with"), outcome(tmp_path / "without")
    assert len(losses) == 6
    assert losses == pytest.approx(expected, rel=1e-5)
    assert top1 == expected_top1
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("with", "without")]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()


@pytest.mark.slow
def test_a_run_that_goes_on_does_so_with_its_own_trunk(entry_point, tmp_path, monkeypatch):
    """Even where the file of weights that it started from has been written over."""
    entry_point("train", tmp_path / "head", *RUN, "finetune=head", "mame=off")
    weights = tmp_path / "weights.ckpt"
    shutil.copy(tmp_path / "head/checkpoints/best.ckpt", weights)
    run = [*RUN, "finetune=last_layer", "mame.r=10", f"model.weights={weights}"]
    entry_point("train", tmp_path / "whole", *run)

    def stop(self):
        if self.current_epoch == 1:
            raise MameLabError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "on_train_epoch_start", stop)
        with pytest.raises(MameLabError, match="killed"):
            entry_point("train", tmp_path / "parts", *run)
    others = torch.load(weights, weights_only=True)
    others["state_dict"]["model.patch_embed.proj.weight"] += 1
    torch.save(others, weights)
    entry_point("train", tmp_path / "parts", *run, "resume=auto")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, parts["state_dict"][name]), name


def test_frozen_blocks_act_as_in_evaluation_whatever_a_pattern_matches(cached, cache):
    quiet = everything(cached("+model.args.drop_path_rate=0.5", recipe="head"))
    shutil.rmtree(cache)
    noisy = cached("+model.args.drop_path_rate=0.5", "finetune.train=['head|.*drop.*']", recipe="head")
    assert noisy.split_model.blocks[1].drop_path1.training
    for kept, expected in zip(everything(noisy), quiet, strict=True):
        assert torch.equal(kept.sample.x_NC, expected.sample.x_NC)


def test_what_is_not_validated_is_not_computed(entry_point, tmp_path, capsys):
    run = [*RUN, "finetune=head", "trainer.limit_val_batches=0", "trainer.max_epochs=1"]
    entry_point("train", tmp_path / "run", *run)
    told = capsys.readouterr().out
    assert "Cached tokens of train" in told
    assert "of val" not in told


def test_one_augmented_view_for_all_epochs_is_told(cached, capsys):
    cached("dataset.augment=crop")
    assert "Cached tokens of train, augmented once for all epochs: 12 samples" in capsys.readouterr().out


@pytest.mark.slow
def test_a_teacher_says_the_same_from_the_cache(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path / "head", *RUN, "finetune=head", "mame=off")
    run = [*RUN, "finetune=last_layer", "mame.r=10", "finetune.distill=0.7", "finetune.temperature=2", "optim.lr=0.1"]
    run.append(f"model.weights={tmp_path / 'head/checkpoints/best.ckpt'}")
    entry_point("train", tmp_path / "without", *run, "finetune.cache=false")
    entry_point("train", tmp_path / "with", *run)
    assert "Cached logits of train: 12 samples" in capsys.readouterr().out
    assert outcome(tmp_path / "with")[0] == pytest.approx(outcome(tmp_path / "without")[0], rel=1e-5)


def test_another_teacher_is_asked_again(cached, capsys):
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).requires_grad_(False)
    cached(teacher=teacher)
    nn.init.zeros_(teacher[-1].weight)
    taught = cached(teacher=teacher)
    assert "logits of train: 12 samples, 12 made now (weights changed)" in capsys.readouterr().out.replace("\n", " ")
    assert torch.equal(taught.train[5][2], teacher[-1].bias)


def test_what_is_kept_is_used_again_and_shared_among_seeds(cached, capsys):
    first = cached("mame.r=10", "model.pretrained=false")
    assert capsys.readouterr().out.count("12 made now;") == 2
    torch.manual_seed(5)
    again = cached("mame.r=10", "optim.lr=0.1", "dataset.batch_size=4")
    assert capsys.readouterr().out.count("none made anew") == 2
    for index in (0, 11):
        assert torch.equal(again.train.views[0][index].sample.x_NC, first.train.views[0][index].sample.x_NC)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["mame.r=11"], "mame"),
        (["mame.r=10", "model.img_size=48"], "weights and preprocessing and model"),
        (["mame.r=10", "dataset.crop_seed=1"], "data and dataset"),
        (["mame.r=10", "seed=1"], "weights"),
        (["mame.r=10", "dataset.augment=crop"], "augmentation"),
        (["mame.r=10", "dataset.augment=crop_flip"], "augmentation"),
        (["mame.r=10", "dataset.augment=crop", "dataset.min_crop_area=0.5"], "augmentation"),
        (["mame.r=10", "mame.prop_attn=false"], "mame"),
        (["mame.r=10", "trainer.precision=bf16-mixed"], "precision"),
        (["mame.r=10", "finetune.cache_dtype=float16"], "dtype"),
    ],
    ids=str,
)
def test_whatever_it_follows_from_changes_it_and_it_says_so(cached, overrides, changed, capsys):
    before = ["dataset.augment=crop"] if "dataset.min_crop_area=0.5" in overrides else []
    cached("mame.r=10", *before)
    capsys.readouterr()
    cached(*overrides)
    told = capsys.readouterr().out
    assert f"12 made now ({changed} changed)" in told.replace("\n", " "), told


def test_another_stage_has_other_tokens(cached, capsys):
    cached()
    cached(recipe="head")
    assert "12 made now (stage changed)" in capsys.readouterr().out.replace("\n", " ")


def test_other_code_computes_all_again(cached, monkeypatch, capsys):
    cached()
    monkeypatch.setattr(fingerprint, "code", lambda *parts: {"sources": "edited"})
    cached()
    assert capsys.readouterr().out.replace("\n", " ").count("12 made now (code changed)") == 2


def test_validation_is_not_augmented(cached, capsys):
    plain = cached()
    augmented = cached("dataset.augment=crop")
    assert "tokens of val: 12 samples, none made anew" in capsys.readouterr().out
    assert torch.equal(augmented.val.views[0][3].sample.x_NC, plain.val.views[0][3].sample.x_NC)


def test_a_file_that_was_edited_is_computed_again(cached, tmp_path, capsys):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.effect_noise((24, 40), 60).convert("RGB").save(tmp_path / "images" / name / "0.png")
    images = ["dataset=imagefolder", f"dataset.root={tmp_path / 'images'}", "dataset.num_workers=0"]
    cached(images=images)
    capsys.readouterr()
    Image.effect_noise((24, 40), 200).convert("RGB").save(tmp_path / "images/train/a/0.png")
    os.utime(tmp_path / "images/train/a/0.png", (1, 1))
    cached(images=images)
    told = capsys.readouterr().out
    assert "tokens of train: 2 samples, 2 made now (data changed)" in told
    assert "tokens of val: 2 samples, none made anew" in told


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_computes_leaves_whole_files(cached, tmp_path, cache, capsys):
    overrides = [*TINY, *CACHED, *PHOTOS, "finetune=last_layer", "mame.r=10", f"hydra.run.dir={tmp_path / 'run'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(ROOT / "train.py"), *overrides], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (folder,) = (cache / "features").iterdir()
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 0 < len(files) < 4

    found = cached("mame.r=10")
    assert (
        f"12 samples, {12 - found.train.views[0].per_file * len(files)} made now;"
        in capsys.readouterr().out.replace("\n", " ")
    )
    assert {path: path.stat().st_mtime_ns for path in files} == files
    expected = everything(found)
    shutil.rmtree(cache)
    for kept, fresh in zip(expected, everything(cached("mame.r=10")), strict=True):
        assert kept.label == fresh.label
        assert torch.allclose(kept.sample.x_NC, fresh.sample.x_NC, atol=1e-5)
        assert torch.equal(kept.sample.origin_N, fresh.sample.origin_N)


def everything(data):
    store = data.train.views[0]
    return [store[index] for index in range(len(store))]


@pytest.mark.slow
def test_the_configuration_of_a_transformers_model_counts(cached, capsys):
    videos = ["model=videomae_mini", "dataset=moving_digits", "dataset.digits=1"]
    cached("mame.r=4", images=videos)
    capsys.readouterr()
    cached("mame.r=4", "++model.args.layer_norm_eps=0.01", images=videos)
    assert "8 made now (model and config changed)" in capsys.readouterr().out


def test_views_are_different_and_all_are_used(cached, capsys):
    data = cached("dataset.augment=crop", "finetune.views=3")
    assert "tokens of train, view 3 of 3: 12 samples" in capsys.readouterr().out
    tokens = [store[0].sample.x_NC for store in data.train.views]
    assert all(not torch.equal(tokens[i], tokens[i - 1]) for i in range(3))
    drawn = [data.train[0, seed][0].x_NC for seed in range(9)]
    assert {view for x_NC in drawn for view in range(3) if torch.equal(x_NC, tokens[view])} == {0, 1, 2}
    cached("dataset.augment=crop", "finetune.views=4")
    assert capsys.readouterr().out.count("none made anew") == 4


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("full", [], "finetune=full trains what comes before all blocks"),
        ("last_layer", ["mame=mame", "mame.batching=union"], "mame.batching=union exclude each other"),
        ("last_layer", ["mame=drop", "mame.r=4"], "mame=drop exclude each other, for it draws anew"),
        ("last_layer", ["finetune.views=2"], "dataset.augment=none exclude each other"),
        ("last_layer", ["finetune.views=0"], "finetune.views=0"),
        ("last_layer", ["finetune.cache_dtype=int8"], "finetune.cache_dtype=int8: set it to one of float32"),
        (
            "last_layer",
            ["finetune.cache=false", "finetune.cache_dtype=float16"],
            "finetune.cache_dtype=float16 and finetune.cache=false exclude each other",
        ),
        ("last_layer", ["compile=true"], "finetune.cache=true and compile=true exclude"),
        ("last_layer", ["trainer.precision=bf16-true"], "trainer.precision=bf16-true"),
    ],
)
def test_what_cannot_be_kept_is_refused(cached, recipe, overrides, message):
    with pytest.raises(MameLabError, match=message):
        cached(*overrides, recipe=recipe)


def test_no_room_is_told_before_anything_is_computed(cached, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        MameLabError,
        match=r"it takes about 6.9e-05 GB, and 1e-06 GB are free.*MAME_LAB_CACHE.*finetune.cache_dtype=float16",
    ):
        cached("mame.r=10")


@pytest.mark.slow
def test_two_processes_share_the_work_and_train_as_one(entry_point, tmp_path, cache):
    run = [*RUN, "finetune=last_layer", "mame.r=10", "dataset.num_workers=0"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "dataset.batch_size=4"]
    run = [override for override in run if not override.startswith(("trainer.accelerator", "dataset.batch_size"))]
    entry_point("train", tmp_path / "one", *run, "trainer.accelerator=cpu", "dataset.batch_size=8")
    shutil.rmtree(cache)
    command = [sys.executable, str(ROOT / "train.py"), *run, *two, f"hydra.run.dir={tmp_path / 'two'}"]
    subprocess.run(command, check=True)
    (losses, top1), (expected, expected_top1) = outcome(tmp_path / "two"), outcome(tmp_path / "one")
    assert losses == pytest.approx(expected, rel=1e-4)
    assert top1 == expected_top1
