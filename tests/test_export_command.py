"""python -m mame_lab.export: one file that computes what the run's model does, or one line that says why not."""

from dataclasses import asdict

import pytest
import torch

from mame_lab import export
from mame_lab.errors import MameLabError
from mame_lab.merging import MaMe, Ward
from mame_lab.merging.atc import ATC
from mame_lab.merging.drop import Drop
from mame_lab.models import load
from mame_lab.models.settings import ModelSettings

ARGS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def saved(folder, method):
    """A checkpoint as train.py writes it."""
    settings = ModelSettings(name="vit_tiny_patch16_224", pretrained=False, num_classes=4, img_size=32, args=ARGS)
    state = {f"model.{name}": value for name, value in load(settings).state_dict().items()}
    config = {"model": asdict(settings), "mame": asdict(method), "dataset": {}, "seed": 0}
    torch.save({"config": config, "state_dict": state, "global_step": 1}, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.mark.parametrize("kind", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_the_file_computes_what_the_model_does(kind, tmp_path, capsys, monkeypatch):
    ckpt = saved(tmp_path, Ward(r=3))
    monkeypatch.setattr("sys.argv", ["export", f"ckpt={ckpt}", f"format={kind}"])
    export.main()
    assert (tmp_path / f"best.{kind}").stat().st_size > 10_000
    assert f"Written to {tmp_path / f'best.{kind}'}: the logits of 4 images" in capsys.readouterr().out


def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def write(program, images_B3HW, path):
        path.write_text("other")
        return torch.ones(4, 4)

    monkeypatch.setattr(export, "_write_onnx", write)
    with pytest.raises(MameLabError, match="the logits differ by"):
        export.export(export.Export(str(saved(tmp_path, Ward(r=3)))))
    assert not (tmp_path / "best.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt is missing: give ckpt=FILE"),
        (["ckpt=a", "batch=3"], "batch is not known"),
        (["ckpt=a", "format=engine"], "format=engine is not known: choose from onnx, pt2"),
        (["ckpt=a", "format=pt2", "out=model.bin"], "out=model.bin: give a name that ends in .pt2"),
        (["ckpt=nowhere.ckpt"], "ckpt=nowhere.ckpt does not exist"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, says, monkeypatch):
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    with pytest.raises(SystemExit, match=says):
        export.main()


@pytest.mark.parametrize(
    ("method", "says"),
    [(MaMe(tau=0.9), "the images decide"), (ATC(r=3), "not compile into one graph"), (Drop(r=3), "draws anew")],
    ids=str,
)
def test_merging_that_no_file_can_hold_is_refused(method, says, tmp_path):
    with pytest.raises(MameLabError, match=says):
        export.export(export.Export(str(saved(tmp_path, method))))


def test_nothing_is_left_of_a_file_that_does_not_run(tmp_path, monkeypatch):
    def write(program, images_B3HW, path):
        path.write_text("half")
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export, "_write_onnx", write)
    with pytest.raises(RuntimeError, match="no such operator"):
        export.export(export.Export(str(saved(tmp_path, Ward(r=3)))))
    assert not (tmp_path / "best.onnx").exists()
