"""Videos on disk: what is listed, which frames are read, and what becomes of broken ones."""

import json
import logging
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image
from written_videos import FRAMES, RATE, STEP, add_pictures, cut_in_half, write_pictures, write_silence, write_video

from mame_lab.data import Kinetics400
from mame_lab.data import videos as videos_module
from mame_lab.data.datamodule import ImageData
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.data.videos import VideoFile, find_faults
from mame_lab.errors import MameLabError

PREPROCESSING = Preprocessing(
    size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0, crop_mode="center", frames=4
)


@pytest.fixture
def root(tmp_path):
    """Six videos in Kinetics' layout, two of them for training."""
    rows = {"train": [("zumba", "a", 0), ("abseiling", "b", 5)]}
    rows["val"] = [("abseiling", "c-_", 10), ("zumba", "d", 120), ("abseiling", "e", 7), ("zumba", "f", 0)]
    for split, videos in rows.items():
        lines = ["label,youtube_id,time_start,time_end,split"]
        for label, name, start in videos:
            lines.append(f"{label},{name},{start},{start + 10},{split}")
            write_video(tmp_path / split / f"{name}_{start:06}_{start + 10:06}.mp4", offset=5 * len(lines))
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def brightness(x_TCHW):
    return [round(value) for value in x_TCHW.float().mean((1, 2, 3)).tolist()]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_every_frame_is_found_alone_and_in_any_order(tmp_path, suffix):
    write_video(path := tmp_path / f"video{suffix}")
    video = VideoFile(str(path))
    assert len(video) == FRAMES
    whole = video.read(range(FRAMES))
    assert (whole.shape, whole.dtype) == ((FRAMES, 3, 24, 32), torch.uint8)
    assert brightness(whole) == pytest.approx([STEP * number for number in range(FRAMES)], abs=3)
    for number in range(FRAMES):
        assert torch.equal(video.read([number])[0], whole[number])
    order = [30, 3, 3, 17]
    assert torch.equal(video.read(order), whole[order])


class Watched:
    """A container that writes down the frames that are decoded."""

    def __init__(self, container, decoded):
        self.container, self.decoded = container, decoded

    def __getattr__(self, name):
        return getattr(self.container, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def decode(self, stream):
        for frame in self.container.decode(stream):
            self.decoded.append(round(frame.time * RATE))
            yield frame


def test_a_clip_is_decoded_from_the_key_frame_before_it_to_its_end(tmp_path, monkeypatch):
    write_video(path := tmp_path / "video.mp4")
    real, decoded = av.open, []
    monkeypatch.setattr(av, "open", lambda path: Watched(real(path), decoded))
    VideoFile(str(path)).read([28, 30])
    assert decoded == [*range(decoded[0], 31)]
    assert decoded[0] > 12  # of the group before, at most what its last frame points to


LENGTHS = {
    "sound that is longer": ("video.mkv", {"sound": 5.0}, range(FRAMES)),
    "much longer sound, and hardly searchable": ("video.ts", {"sound": 20.0}, range(FRAMES)),
    "a clock that starts late": ("video.mkv", {"times": range(100, 100 + FRAMES)}, range(FRAMES)),
    "a clock that starts late, and a count": ("video.mp4", {"times": range(100, 100 + FRAMES)}, range(FRAMES)),
    "no duration": ("video.mkv", {"live": "1"}, range(FRAMES)),
    "fragments": ("video.mp4", {"movflags": "frag_keyframe+empty_moov", "sound": 5.0}, range(FRAMES)),
    "an edit list": ("video.mp4", {"times": range(-15, FRAMES - 15)}, range(15, FRAMES)),
    "a single frame": ("video.mkv", {"times": [0]}, [0]),
    "a single frame, and no rate": ("video.ts", {"times": [0]}, [0]),
    "a gap": ("video.mkv", {"times": [0, 1, 2, 6, 7]}, [0, 1, 2, 3, 3, 3, 3, 4]),
    "a gap, and a count": ("video.mp4", {"times": [0, 1, 2, 6, 7]}, [0, 1, 2, 3, 3]),
}


@pytest.mark.parametrize(("name", "options", "shown"), LENGTHS.values(), ids=LENGTHS)
def test_the_frames_that_are_there_are_found(tmp_path, name, options, shown):
    write_video(path := tmp_path / name, **options)
    video = VideoFile(str(path))
    assert len(video) == len(shown)
    assert brightness(video.read(range(len(video)))) == pytest.approx([STEP * number for number in shown], abs=3)
    assert torch.equal(video.read([len(video) - 1]), video.read([0, len(video) - 1])[1:])
    assert not find_faults([str(path)], tmp_path / "checked.json")


def test_a_last_picture_that_stays_is_no_early_end(tmp_path):
    first, *others = (Image.new("L", (32, 24), STEP * number) for number in range(5))
    first.save(path := tmp_path / "video.gif", save_all=True, append_images=others, duration=[50] * 4 + [5000])
    assert len(VideoFile(str(path))) == 5
    assert not find_faults([str(path)], tmp_path / "checked.json")


def test_the_length_of_a_video_is_found_without_decoding(tmp_path, monkeypatch):
    write_video(path := tmp_path / "video.mkv", range(50 * RATE))
    real, decoded = av.open, []
    monkeypatch.setattr(av, "open", lambda path: Watched(real(path), decoded))
    assert len(VideoFile(str(path))) == 50 * RATE
    assert decoded == []


def write_beside_a_cover(path, sound):
    """Pictures, or silence, beside a stream of one black picture; in a .mkv that one comes first."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 8, 8, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("aac", rate=48000) if sound else add_pictures(container)
        container.start_encoding()
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8))))
        container.mux(cover.encode())
        if sound:
            write_silence(container, stream, sound)
        else:
            write_pictures(container, stream, range(FRAMES))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_cover_is_no_video(tmp_path, suffix):
    write_beside_a_cover(path := tmp_path / f"video{suffix}", sound=0)
    video = VideoFile(str(path))
    assert len(video) == FRAMES
    assert brightness(video.read([0, FRAMES - 1])) == pytest.approx([0, STEP * (FRAMES - 1)], abs=3)


def test_what_holds_no_video_is_said(tmp_path):
    write_beside_a_cover(tmp_path / "cover.mp4", sound=2)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        write_silence(container, container.add_stream("aac", rate=48000), 2)
    with av.open(str(tmp_path / "bare.h264"), "w") as container:
        write_pictures(container, add_pictures(container), range(FRAMES))
    paths = [str(tmp_path / name) for name in ("cover.mp4", "sound.mkv", "bare.h264")]
    nothing, no_time = "it holds no pictures, or a cover alone", "it holds no pictures that have a time"
    faults = dict(zip(paths, (nothing, nothing, no_time), strict=True))
    assert find_faults(paths, tmp_path / "checked.json") == faults


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_the_lists_of_kinetics(root, folder):
    if folder:
        (root / folder).mkdir()
        for split in ("train", "val"):
            (root / f"{split}.csv").rename(root / folder / f"{split}.csv")
    splits = Kinetics400(root=str(root)).splits()
    assert splits.classes == ["abseiling", "zumba"]
    assert splits.test is splits.val
    assert splits.conditions == {"views": "5x3"}
    assert sorted(splits.val.files) == [
        (str(root / "val/c-__000010_000020.mp4"), 0),
        (str(root / "val/d_000120_000130.mp4"), 1),
        (str(root / "val/e_000007_000017.mp4"), 0),
        (str(root / "val/f_000000_000010.mp4"), 1),
    ]
    assert sorted(splits.train.files) == [
        (str(root / "train/a_000000_000010.mp4"), 1),
        (str(root / "train/b_000005_000015.mp4"), 0),
    ]
    assert len(splits.val[0][0]) == FRAMES


def test_lists_of_paths_and_numbers(tmp_path):
    (tmp_path / "val.csv").write_text("a b/c.mp4 02\n/elsewhere/d.mp4 0\n")
    splits = Kinetics400(root=str(tmp_path)).splits()
    assert splits.train is None
    assert splits.classes == ["0", "1", "2"]
    assert sorted(splits.val.files) == [("/elsewhere/d.mp4", 0), (str(tmp_path / "a b/c.mp4"), 2)]
    (tmp_path / "classes.txt").write_text("run\njump\nfall\nrest\n")
    assert Kinetics400(root=str(tmp_path)).splits().classes == ["run", "jump", "fall", "rest"]
    (tmp_path / "classes.txt").write_text("run\njump\n")
    with pytest.raises(MameLabError, match=r"classes.txt has 2 lines, and there is a class 2: give"):
        Kinetics400(root=str(tmp_path)).splits()


def test_names_are_numbered_by_the_file_of_classes(root):
    (root / "classes.txt").write_text("zumba\nrest\nabseiling\n")
    splits = Kinetics400(root=str(root)).splits()
    assert splits.classes == ["zumba", "rest", "abseiling"]
    labels = {"zumba": 0, "abseiling": 2}
    assert sorted(splits.train.files) == [
        (str(root / "train/a_000000_000010.mp4"), labels["zumba"]),
        (str(root / "train/b_000005_000015.mp4"), labels["abseiling"]),
    ]
    (root / "classes.txt").write_text("abseiling\n")
    named = rf"(val|train).csv has the label 'zumba', which is no line of {root / 'classes.txt'}: add it there$"
    with pytest.raises(MameLabError, match=named):
        Kinetics400(root=str(root)).splits()


def test_videos_come_in_mixed_order(tmp_path):
    (tmp_path / "val.csv").write_text("".join(f"{number}.mp4 {number // 50}\n" for number in range(100)))
    labels = [label for _, label in Kinetics400(root=str(tmp_path)).splits().val.files]
    assert set(labels[:10]) == {0, 1}
    assert labels == [label for _, label in Kinetics400(root=str(tmp_path)).splits().val.files]


@pytest.mark.parametrize(
    ("settings", "lines", "message"),
    [
        ({"root": None}, None, "dataset.root=None is not set"),
        ({}, None, "dataset.root={root} holds no val.csv"),
        ({}, "a.mp4 0\nb.mp4\n", "{root}/val.csv, line 2: 'b.mp4' is no 'PATH LABEL'"),
        ({}, "a.mp4 jump\n", "{root}/val.csv, line 1: 'a.mp4 jump' is no 'PATH LABEL'"),
        ({"on_broken": "ignore"}, None, "dataset.on_broken=ignore is unknown: choose one of error, skip"),
        ({"on_broken": "skip"}, "a.mp4 0\n", "all videos of {root}/val.csv are broken, {root}/a.mp4 for one (No such"),
    ],
)
def test_what_is_refused(tmp_path, settings, lines, message):
    if lines:
        (tmp_path / "val.csv").write_text(lines)
    with pytest.raises(MameLabError, match="^" + re.escape(message.format(root=tmp_path))) as raised:
        Kinetics400(**{"root": str(tmp_path)} | settings).splits()
    assert "\n" not in str(raised.value)


def test_batches_of_clips_and_of_views(root):
    data = ImageData(Kinetics400(root=str(root), num_workers=0, batch_size=2, frame_stride=3, clips=2), PREPROCESSING)
    x_BTCHW, y_B = next(iter(data.train_dataloader()))
    assert (x_BTCHW.shape, sorted(y_B.tolist())) == ((2, 4, 3, 16, 16), [0, 1])
    x_BTCHW, y_B = next(iter(data.val_dataloader()))
    assert x_BTCHW.shape == (2, 4, 3, 16, 16)
    levels = x_BTCHW.mean((2, 3, 4)) * 255
    assert ((levels[:, 1:] - levels[:, :-1] - 3 * STEP).abs() < 3).all()
    x_VTCHW, y_B = next(iter(data.test_dataloader()))
    assert (x_VTCHW.shape, len(y_B)) == ((2 * 6, 4, 3, 16, 16), 2)
    first, last = (x_VTCHW[view].mean((1, 2, 3)) * 255 for view in (0, 5))
    assert (last - first).tolist() == pytest.approx([STEP * (FRAMES - 10)] * 4, abs=4)


def test_a_video_that_was_cut_off_is_broken(tmp_path):
    for name in ("picture.mkv", "sound.mkv"):
        write_video(path := tmp_path / name, range(200), sound=10.0 if name == "sound.mkv" else 0)
        cut_in_half(path)
        with pytest.raises(MameLabError, match=rf"{name} cannot be read \(it ends after \d\.\d of 10.\d s\)"):
            len(VideoFile(str(path)))


BREAK = {
    "missing": lambda path: path.unlink(),
    "cut in half": cut_in_half,
    "no video": lambda path: path.write_text("not a video"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("harm", BREAK.values(), ids=BREAK)
def test_a_broken_video_ends_the_run_by_its_name(root, harm):
    path = root / "val/d_000120_000130.mp4"
    harm(path)
    data = ImageData(Kinetics400(root=str(root), num_workers=0), PREPROCESSING)
    with pytest.raises(MameLabError, match=f"^video {path} cannot be read .*dataset.on_broken=skip$") as raised:
        list(data.test_dataloader())
    assert "\n" not in str(raised.value)


def test_a_video_that_ends_early_is_broken(root):
    path = root / "val/d_000120_000130.mkv"
    write_video(path)
    short = VideoFile(str(path))
    vars(short)["_length"] = 2 * FRAMES
    assert len(short.read([0, FRAMES - 1 + RATE // 2])) == 2
    with pytest.raises(MameLabError, match=f"it ends with frame {FRAMES - 1}, before frame {2 * FRAMES - 1}"):
        short.read([0, 2 * FRAMES - 1])


@pytest.mark.parametrize("harm", BREAK.values(), ids=BREAK)
def test_broken_videos_are_left_out_and_told(root, harm, caplog, monkeypatch):
    settings = {"root": str(root), "num_workers": 0, "batch_size": 2}
    whole = Kinetics400(**settings).splits()
    harm(root / "val/d_000120_000130.mp4")
    with caplog.at_level(logging.WARNING):
        data = ImageData(Kinetics400(**settings, on_broken="skip"), PREPROCESSING)
        assert sum(len(y_B) for _, y_B in data.test_dataloader()) == 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(
        f"dataset.on_broken=skip leaves out 1 of the 4 videos of {root / 'val.csv'}: {root / 'val/d_0'}"
    )
    assert data.splits.conditions == {"views": "5x3", "broken": "1 of 4 left out"}
    assert data.splits.val.files == [each for each in whole.val.files if "d_000120" not in each[0]]
    assert data.splits.train.files == whole.train.files

    monkeypatch.setattr(videos_module, "_fault", lambda path: pytest.fail(f"{path} is checked again"))
    again = Kinetics400(**settings, on_broken="skip").splits()
    assert again.val.files == data.splits.val.files


def test_a_video_that_was_mended_is_checked_again(root):
    path = root / "val/d_000120_000130.mp4"
    cut_in_half(path)
    dataset = Kinetics400(root=str(root), on_broken="skip")
    assert len(dataset.splits().val) == 3
    write_video(path)
    assert len(dataset.splits().val) == 4
    assert len(json.loads((root / "checked.json").read_text())) == 6
    (root / "checked.json").write_text("{")
    assert len(dataset.splits().val) == 4


def test_without_pyav_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MameLabError, match=r"^videos need PyAV: pip install 'mame_lab\[video\]'$"):
        len(VideoFile(str(root / "val/d_000120_000130.mp4")))
