"""What a file of weights may hold beside its tensors, and what is said of one that is broken."""

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT
from safetensors.torch import save, save_file
from torch import nn

from mame_lab import MameLabError
from mame_lab.models import checkpoint, load
from mame_lab.models.settings import ModelSettings
from mame_lab.models.weights import read_weights

STATE = {"w": torch.arange(3.0)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("beside", [np.float64(81.2), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(3)])
def test_numpy_beside_tensors_is_loaded(beside, tmp_path):
    torch.save({"state_dict": STATE, "best": beside, "args": Namespace(lr=beside)}, tmp_path / "w.pth")
    assert torch.equal(read_weights(str(tmp_path / "w.pth"))["w"], STATE["w"])


PLACES = "state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module", "net", "params", "teacher"


@pytest.mark.parametrize("place", [*PLACES, None])
def test_the_state_dict_is_found_where_training_scripts_keep_it(place, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    torch.save(state if place is None else {place: state, "epoch": 3}, tmp_path / "w.pth")
    assert list(read_weights(str(tmp_path / "w.pth"))) == ["w"]


def test_the_averaged_weights_come_first_and_what_is_no_state_dict_is_passed_over(tmp_path):
    average = {"w": STATE["w"] + 1}
    torch.save({"model": STATE, "module": STATE, "params": 3, "model_ema": average}, tmp_path / "w.pth")
    assert torch.equal(read_weights(str(tmp_path / "w.pth"))["w"], average["w"])
    torch.save({"model": "vit", "params": {"lr": 0.1}, "module": average}, tmp_path / "w.pth")
    assert torch.equal(read_weights(str(tmp_path / "w.pth"))["w"], average["w"])


@pytest.mark.parametrize("place", ["model", None])
def test_what_is_no_tensor_is_left_out(place, tmp_path):
    state = STATE | {"epoch": 3, "block._extra_state": None, 7: STATE["w"]}
    torch.save(state if place is None else {place: state}, tmp_path / "w.pth")
    assert list(read_weights(str(tmp_path / "w.pth"))) == ["w"]


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.Safetensors", "w.bin"])
def test_the_content_says_what_a_file_is(name, tmp_path):
    save_file(STATE, tmp_path / name)
    assert torch.equal(read_weights(str(tmp_path / name))["w"], STATE["w"])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", r"is empty \(0 bytes\): get it again"),
        (POINTER, "is a pointer of Git LFS .*: run `git lfs pull` there"),
        (save(STATE)[:-4], "cannot be read: it is cut off, or no file of tensors: get it again"),
        (b"could not find it\ngone\n", "cannot be read: it is cut off, or no file of tensors: get it again"),
        (b"<html>not found</html>", "cannot be read: it is cut off, or no file of tensors: get it again"),
        (nn.Linear(2, 2), r"cannot be read: it holds torch.nn.modules.linear.Linear .*torch.save\(model.state_dict"),
        ({"state_dict": STATE, "path": Path("x")}, "cannot be read: it holds pathlib.PosixPath .* or safetensors$"),
        ({"epoch": 3}, "holds no tensors by their names: give a state dict"),
        ([1, 2], "holds no tensors by their names: give a state dict"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_broken_file_is_named(content, fault, name, tmp_path):
    write(tmp_path / name, content)
    with pytest.raises(MameLabError, match=f"^model.weights={tmp_path / name} {fault}") as error:
        read_weights(str(tmp_path / name))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (STATE | {"args": Namespace(out=Path("x"))}, "pathlib.PosixPath"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"call": os.system}, "posix.system"),
    ],
    ids=str,
)
def test_objects_in_the_format_before_zip_files_are_named(content, named, tmp_path):
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(MameLabError, match=f"cannot be read: it holds {named} beside or instead of tensors"):
        read_weights(str(tmp_path / "w.pth"))


def test_a_file_that_ends_early_is_named(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    for length in (1, 100, (tmp_path / "w.pth").stat().st_size - 30):
        (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:length])
        with pytest.raises(MameLabError, match=r"cut.pth cannot be read: it is cut off"):
            read_weights(str(tmp_path / "cut.pth"))


def test_a_checkpoint_that_is_broken_says_what_else_to_give(tmp_path):
    write(tmp_path / "last.ckpt", POINTER)
    with pytest.raises(MameLabError, match=r"^ckpt=.*last.ckpt is a pointer of Git LFS"):
        checkpoint.read(tmp_path / "last.ckpt")
    write(tmp_path / "last.ckpt", b"x")
    with pytest.raises(MameLabError, match=r"last.ckpt cannot be read: .*: give another best.ckpt or last.ckpt"):
        checkpoint.read(tmp_path / "last.ckpt")
    torch.save({"epoch": np.float64(1)}, tmp_path / "other.CKPT")
    with pytest.raises(MameLabError, match=r"^model.weights=.*other.CKPT is no checkpoint of train.py"):
        load(ModelSettings(name="vit_tiny_patch16_224", weights=str(tmp_path / "other.CKPT")))


FOLDERS = {"transformers": "model.safetensors", "diffusers": "unet/diffusion_pytorch_model.safetensors"}


def save_folder(library: str, folder: Path) -> ModelSettings:
    """Save a small model of the library; the settings load it."""
    if library == "diffusers":
        sizes = yaml.safe_load((ROOT / "conf/model/sd_mini.yaml").read_text())["args"]
    else:
        sizes = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    load(ModelSettings(family=library, name="x", pretrained=False, args=sizes)).save_pretrained(folder)
    return ModelSettings(family=library, name="x", weights=str(folder))


@pytest.mark.parametrize("library", FOLDERS)
@pytest.mark.parametrize(("content", "fault"), [(POINTER, "is a pointer of Git LFS"), (b"", "is empty .0 bytes.")])
def test_a_folder_without_its_weights_is_named(library, content, fault, tmp_path):
    settings = save_folder(library, tmp_path)
    write(tmp_path / FOLDERS[library], content)
    with pytest.raises(MameLabError, match=rf"^model.weights={tmp_path / FOLDERS[library]} {fault}"):
        load(settings)


@pytest.mark.parametrize("library", FOLDERS)
def test_what_nobody_reads_in_a_folder_may_be_missing(library, tmp_path):
    settings = save_folder(library, tmp_path)
    whole = tmp_path / FOLDERS[library]
    for path in (whole.with_name("pytorch_model.bin"), whole.with_suffix(".bin"), tmp_path / "ema-pruned.ckpt"):
        write(path, POINTER)
    write(tmp_path / "training_args.bin", b"")
    load(settings)


def write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
