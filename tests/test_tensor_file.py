"""What a file of weights may hold beside its tensors, and what is said of one that is broken."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from mame_lab import MameLabError, checkpoint
from mame_lab.models import family, load
from mame_lab.models.settings import ModelSettings
from mame_lab.models.weights import read_weights

STATE = {"w": torch.arange(3.0)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("beside", [np.float64(81.2), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(3)])
def test_numpy_beside_tensors_is_loaded(beside, tmp_path):
    torch.save({"state_dict": STATE, "best": beside, "args": Namespace(lr=beside)}, tmp_path / "w.pth")
    assert torch.equal(read_weights(str(tmp_path / "w.pth"))["w"], STATE["w"])


@pytest.mark.parametrize("place", ["state_dict_ema", "model_ema", "state_dict", "model", None])
def test_the_state_dict_is_found_where_training_scripts_keep_it(place, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    torch.save(state if place is None else {place: state, "epoch": 3}, tmp_path / "w.pth")
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


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_a_folder_of_pointers_is_named(library, tmp_path):
    (tmp_path / "unet").mkdir()
    for name in ("config.json", "model_index.json"):
        write(tmp_path / name, b"{}")
    write(tmp_path / "unet/model.safetensors", POINTER)
    with pytest.raises(MameLabError, match=rf"^model.weights={tmp_path}/unet/model.safetensors is a pointer of Git"):
        family(library).load(ModelSettings(family=library, name="x", weights=str(tmp_path)))


def write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
