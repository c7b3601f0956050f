"""Videos go through train.py and eval.py as images do."""

import json

import av
import numpy as np
import pytest
from commands import TINY

from mame_lab import MameLabError
from mame_lab.measure.result import Result

MACHINE = [override for override in TINY if not override.startswith("model.")]
MODEL = ["model=videomae_mini", "model.args.num_hidden_layers=3", "model.args.hidden_size=24"]
MODEL += ["model.args.num_attention_heads=2", "model.args.intermediate_size=48"]
MOVING = [*MACHINE, *MODEL, "dataset=moving_digits", "dataset.digits=4"]


def test_train_on_moving_digits_and_evaluate_in_several_views(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path / "run", *MOVING, "mame.r=10")
    trained = Result.load(tmp_path / "run/result.json")
    assert [round(tokens) for tokens in trained.merged.tokens] == [54, 44, 44]
    assert trained.merged.top1.total == 32
    assert trained.conditions.more["views"] == "1x1"
    best = f"ckpt={tmp_path / 'run/checkpoints/best.ckpt'}"
    entry_point("eval", tmp_path / "same", *MACHINE, best)
    entry_point("eval", tmp_path / "views", *MACHINE, best, *MOVING[-2:], "dataset.clips=3")
    assert "views 3x1" in " ".join(capsys.readouterr().out.split())
    same, views = (Result.load(tmp_path / name / "result.json") for name in ("same", "views"))
    assert same.merged.top1 == trained.merged.top1
    assert (views.merged.top1.total, views.agreement.total) == (32, 32)
    assert views.kl != same.kl
    assert (views.merged.gflops, views.conditions.batch) == (same.merged.gflops, same.conditions.batch)


def write_video(path, level):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(20):
            picture = np.full((32, 48, 3), level + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_videos_of_ones_own_some_of_them_broken(entry_point, tmp_path):
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", 40 * number)
    (tmp_path / "3.mp4").write_bytes((tmp_path / "3.mp4").read_bytes()[:300])
    (tmp_path / "val.csv").write_text("".join(f"{number}.mp4 {number % 2}\n" for number in range(5)))
    (tmp_path / "train.csv").write_text("0.mp4 0\n1.mp4 1\n")
    videos = [*MACHINE, *MODEL, "dataset=kinetics400", f"dataset.root={tmp_path}", "dataset.num_workers=0"]
    videos += ["dataset.frame_stride=1", "trainer.limit_test_batches=1.0", "mame.r=10"]
    entry_point("eval", tmp_path / "skip", *videos, "model.num_classes=2", "dataset.on_broken=skip")
    result = Result.load(tmp_path / "skip/result.json")
    assert (result.merged.top1.total, result.agreement.total) == (4, 4)
    assert result.conditions.more["views"] == "5x3"
    assert result.conditions.more["broken"] == "1 of 5 left out"
    entry_point("eval", tmp_path / "features", *videos, "model.num_classes=0", "dataset.on_broken=skip")
    features = Result.load(tmp_path / "features/result.json")
    assert (features.evaluated_by, features.merged.top1.total) == ("k-NN", 4)
    with pytest.raises(MameLabError, match=r"3\.mp4 cannot be read"):
        entry_point("eval", tmp_path / "error", *videos, "model.num_classes=2")
    assert not (tmp_path / "error/result.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=videomae_mini"], "dataset=digits holds images and the model takes videos"),
        (["dataset=moving_digits"], "dataset=moving_digits holds videos and the model takes images"),
    ],
)
def test_what_does_not_go_together_is_said(entry_point, tmp_path, overrides, message):
    with pytest.raises(MameLabError, match=f"^{message}"):
        entry_point("eval", tmp_path, *MACHINE, *overrides)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_videomae_that_merges_learns_where_digits_move(entry_point, tmp_path):
    entry_point("train", tmp_path, "model=videomae_mini", "dataset=moving_digits", "trainer.accelerator=cpu")
    result = json.loads((tmp_path / "result.json").read_text())
    for arm in ("merged", "unmerged"):
        assert result[arm]["top1"]["total"] == 800
        assert result[arm]["top1"]["hits"] >= 0.9 * 800
    assert result["speedup"] > 1
