"""WebDataset shards: read at random what webdataset reads in order, and refused where they are not whole."""

import os
import re
import resource
import runpy
import sys
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from mame_lab.data import ImageFolder, Shards, make_shards, shard_index, shards
from mame_lab.errors import MameLabError


def picture(number: int, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(file, form)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


def samples(start: int, count: int, label: int = 0) -> dict[str, bytes]:
    """Samples of one class whose images are told apart by their colour."""
    return {
        name: content
        for number in range(start, start + count)
        for name, content in ((f"{number:05d}.cls", b"%d" % label), (f"{number:05d}.png", picture(number)))
    }


def colours(images) -> list[tuple[tuple[int, ...], int]]:
    return [(image.getpixel((0, 0)), label) for image, label in (images[i] for i in range(len(images)))]


@pytest.fixture
def root(tmp_path) -> Path:
    """Three shards to train, one class each, and one to validate."""
    for label in range(3):
        write_tar(tmp_path / f"train/t-{label:06d}.tar", samples(10 * label, 10, label))
    write_tar(tmp_path / "val/v-000000.tar", samples(100, 4, 1))
    return tmp_path


def load(root: Path):
    return Shards(root=str(root)).splits()


def test_every_sample_is_the_one_that_webdataset_reads(tmp_path):
    pattern = f"{tmp_path}/val/v-%06d.tar"
    (tmp_path / "val").mkdir()
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as writer:
        for number in range(20):
            form = ("jpg", "png", "WEBP")[number % 3]
            image = picture(50 * number, "JPEG" if form == "jpg" else form)
            writer.write({"__key__": f"n{number % 5}/{number:03d}", form: image, "cls": number % 5, "json": {"a": 1}})
    urls = sorted(str(path) for path in (tmp_path / "val").glob("*.tar"))
    assert len(urls) == 3
    stream = webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb").to_tuple("jpg;png;webp", "cls")
    expected = [(image.getpixel((0, 0)), label) for image, label in stream]
    splits = load(tmp_path)
    assert Counter(colours(splits.val)) == Counter(expected)
    assert len(expected) == 20
    assert splits.classes == ["0", "1", "2", "3", "4"]


def test_splits_are_the_folders_and_names_come_from_a_file(root):
    (root / "classes.txt").write_text("cat\ngreat grey owl\ndog\n")
    splits = load(root)
    assert splits.classes == ["cat", "great grey owl", "dog"]
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [30, 4, 4]
    assert splits.test is splits.val
    assert {label for _, label in colours(splits.val)} == {1}
    write_tar(root / "test/x.tar", samples(200, 3, 2))
    assert len(load(root).test) == 3
    (root / "train").rename(root / "later")
    assert load(root).train is None


def test_marks_and_blank_lines_are_no_part_of_names_and_labels(tmp_path):
    label = "\ufeff1\r\n".encode()
    write_tar(tmp_path / "val/v.tar", {"a.png": picture(1), "a.cls": label})
    (tmp_path / "classes.txt").write_bytes("cat\r\ndog\r\n\r\n".encode("utf-8-sig"))
    splits = load(tmp_path)
    assert splits.classes == ["cat", "dog"]
    assert splits.val[0][1] == 1


def test_names_in_another_encoding_are_refused(root):
    (root / "classes.txt").write_bytes("cat\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(MameLabError, match=f"^{root}/classes.txt, line 2, is no text in UTF-8: save"):
        load(root)


def test_images_come_in_a_fixed_mixed_order(root):
    labels = [label for _, label in colours(load(root).train)]
    assert set(labels[:8]) == {0, 1, 2}
    assert [label for _, label in colours(load(root).train)] == labels


def test_images_become_rgb(tmp_path):
    file = BytesIO()
    Image.new("LA", (3, 2), (9, 255)).save(file, "PNG")
    write_tar(tmp_path / "val/v.tar", {"a.png": file.getvalue(), "a.cls": b"0\n"})
    image, label = load(tmp_path).val[0]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (3, 2), (9, 9, 9), 0)


def test_any_image_that_pillow_reads_is_the_one_of_its_sample(tmp_path):
    ramp = BytesIO()
    Image.fromarray(np.arange(0, 65536, 257, np.uint16)[None]).save(ramp, "PNG")
    write_tar(
        tmp_path / "val/v.tar",
        {"a.jfif": picture(5, "JPEG"), "a.cls": b"0", "b.apng": ramp.getvalue(), "b.cls": b"1"}
        | {"c.png": picture(1), "c.avif": picture(2, "AVIF"), "c.jpg": picture(3, "JPEG"), "c.cls": b"2"},
    )
    images = sorted(load(tmp_path).val, key=lambda pair: pair[1])
    assert [image.size for image, _ in images] == [(6, 4), (256, 1), (6, 4)]
    assert np.asarray(images[1][0])[0, :, 0].tolist() == list(range(256))
    assert images[2][0].tobytes() == Image.open(BytesIO(picture(3, "JPEG"))).tobytes()


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_worker_processes_read_them(root, start, workers):
    images = load(root).train
    expected = colours(images)  # opens the shards in this process first
    loader = DataLoader(images, batch_size=5, num_workers=workers, collate_fn=colours, multiprocessing_context=start)
    assert [pair for batch in loader for pair in batch] == expected


def test_there_may_be_more_shards_than_files_can_be_open(tmp_path):
    count = shards.OPEN_SHARDS + 40
    for number in range(count):
        write_tar(tmp_path / f"val/{number:04d}.tar", samples(number, 1))
    splits = load(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + shards.OPEN_SHARDS + 5, limits[1]))
    try:
        assert len(set(colours(splits.val))) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def touch(root: Path) -> None:
    os.utime(root / "val/v-000000.tar", (1, 1))


def grow(root: Path) -> None:
    shard = root / "val/v-000000.tar"
    before = shard.stat()
    os.utime(write_tar(shard, samples(0, 200)), ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "nothing": (lambda root: None, 4, False),
    "another time": (touch, 4, True),
    "another size": (grow, 200, True),
    "one more": (lambda root: write_tar(root / "val/v-000001.tar", samples(0, 2)), 6, True),
    "another name": (lambda root: (root / "val/v-000000.tar").rename(root / "val/w.tar"), 4, True),
    "a broken index": (lambda root: (root / "val/index.npz").write_bytes(b"PK\3\4 nonsense"), 4, True),
    "an empty index": (lambda root: (root / "val/index.npz").write_bytes(b""), 4, True),
    "an index of other things": (lambda root: np.savez(root / "val/index.npz", a=1), 4, True),
}


@pytest.mark.parametrize(("change", "count", "anew"), CHANGES.values(), ids=CHANGES)
def test_shards_are_indexed_again_only_where_they_changed(root, monkeypatch, change, count, anew):
    colours(load(root).val)
    change(root)
    opened = []
    monkeypatch.setattr(tarfile, "open", lambda *a, original=tarfile.open, **k: opened.append(a) or original(*a, **k))
    val = load(root).val
    assert bool(opened) is anew
    assert len(set(colours(val))) == count
    assert sorted(path.suffix for path in (root / "val").iterdir() if path.suffix != ".tar") == [".npz"]


def test_a_replaced_shard_is_not_read_where_the_old_one_was(root):
    colours(load(root).val)
    write_tar(root / "new.tar", {"notes": b"x"} | samples(300, 4)).replace(root / "val/v-000000.tar")
    assert {colour for (colour, _, _), _ in colours(load(root).val)} == {300 % 256 + i for i in range(4)}


def test_without_a_place_for_the_index_all_else_goes_on(root):
    (root / "val/index.npz").mkdir()
    assert len(load(root).val) == 4
    assert {path.name for path in (root / "val").iterdir()} == {"v-000000.tar", "index.npz"}


def test_a_shard_that_was_cut_anywhere_is_named(tmp_path):
    path = write_tar(tmp_path / "val/v.tar", samples(0, 2))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in (0, 1, *range(100, end + 1024, 256), end + 1023):
        path.write_bytes(whole[:length])
        with pytest.raises(MameLabError, match=f"^{re.escape(str(path))} is no whole tar file of samples") as raised:
            load(tmp_path)
        assert "\n" not in str(raised.value)
    path.write_bytes(whole[: end + 1024])
    assert len(load(tmp_path).val) == 2


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"garbage" * 100)


PLAIN = samples(0, 2)
REFUSED = {
    "no shards": (lambda root: (root / "val/v.tar").unlink(), "{root}/val holds no shards: "),
    "no samples": (lambda root: write_tar(root / "val/v.tar", {}), "the shards of {root}/val hold no samples: "),
    "text": (lambda root: (root / "val/v.tar").write_text("hello"), "{root}/val/v.tar is no whole tar file"),
    "garbage within": (lambda root: overwrite(root / "val/v.tar"), "{root}/val/v.tar is no whole tar file"),
    "a name twice": (
        lambda root: write_tar(root / "val/v.tar", {"a.png": b"", "a.PNG": b"", "a.cls": b"0"}),
        '{root}/val/v.tar is no whole tar file of samples (("a.PNG: duplicate file name',
    ),
    "no image": (
        lambda root: write_tar(root / "val/v.tar", PLAIN | {"x/7.cls": b"1", "x/7.txt": b""}),
        "sample x/7 of {root}/val/v.tar lacks its image (.jpg, .png, ...), it holds cls, txt: ",
    ),
    "no label": (
        lambda root: write_tar(root / "val/v.tar", PLAIN | {"7.png": picture(7)}),
        "sample 7 of {root}/val/v.tar lacks the number of its class (.cls), it holds png: ",
    ),
    "a name as label": (
        lambda root: write_tar(root / "val/v.tar", PLAIN | {"7.cls": b"cat", "7.png": picture(7)}),
        "sample 7 of {root}/val/v.tar is of class b'cat': ",
    ),
    "a negative label": (
        lambda root: write_tar(root / "val/v.tar", PLAIN | {"7.cls": b"-1", "7.png": picture(7)}),
        "sample 7 of {root}/val/v.tar is of class b'-1': ",
    ),
    "a label without a name": (
        lambda root: write_tar(root / "val/v.tar", PLAIN | samples(7, 1, 2)),
        "image 00007.png of {root}/val/v.tar is of class 2, and {root}/classes.txt has 2 lines",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_shards_are_refused(tmp_path, spoil, message):
    write_tar(tmp_path / "val/v.tar", PLAIN)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert len(load(tmp_path).val) == 2
    spoil(tmp_path)
    with pytest.raises(MameLabError, match="^" + re.escape(message.format(root=tmp_path))) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", [None, "/no/such/folder", __file__])
def test_a_bad_root_is_refused(wrong):
    with pytest.raises(MameLabError, match=f"^dataset.root={wrong} holds no val folder: "):
        Shards(root=wrong).splits()


def half_an_image() -> bytes:
    file = BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()[:1000]


@pytest.mark.parametrize("content", [b"not an image", b"", half_an_image()], ids=["text", "empty", "half"])
def test_a_broken_image_is_named(tmp_path, content):
    write_tar(tmp_path / "val/v.tar", {"a/7.png": content, "a/7.cls": b"0"})
    images = load(tmp_path).val
    with pytest.raises(MameLabError, match=rf"^image a/7.png of {tmp_path}/val/v.tar cannot be read"):
        images[0]


def test_a_shard_that_is_gone_is_named(root):
    images = load(root).val
    (root / "val/v-000000.tar").unlink()
    with pytest.raises(MameLabError, match=r"^image at byte \d+ of .*v-000000.tar cannot be read .*No such file"):
        images[0]


def test_webdataset_is_asked_for_where_it_is_needed(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(MameLabError, match=r"pip install 'mame_lab\[shards\]'"):
        load(root)


def test_class_folders_become_shards(make_folder, tmp_path, monkeypatch, capsys):
    folder, out = make_folder({"in/train/cat": 0, "in/train/dog": 3, "in/val/cat": 1, "in/val/dog": 2}) / "in", "out%d"
    Image.new("RGB", (5, 5), "red").save(folder / "train/cat/a.b.JPG")
    Image.new("RGB", (16, 16), "blue").save(folder / "val/cat/c.avif")
    monkeypatch.setattr(make_shards, "SHARD_BYTES", 150)
    make_shards.make(folder, tmp_path / out)
    made, given = load(tmp_path / out), ImageFolder(root=str(folder)).splits()
    assert made.classes == given.classes == ["cat", "dog"]
    for ours, theirs in ((made.train, given.train), (made.val, given.val)):
        assert Counter(colours(ours)) == Counter(colours(theirs))
    assert len(list((tmp_path / out / "train").glob("train-0*.tar"))) > 1
    assert not (tmp_path / out / "test").exists()

    monkeypatch.setattr(sys, "argv", ["make_shards", str(folder), str(tmp_path / out)])
    with pytest.raises(SystemExit, match=f"^error: {tmp_path / out} exists: name a new folder"):
        runpy.run_path(make_shards.__file__, run_name="__main__")


def test_the_index_tells_where_the_bytes_are(tmp_path):
    key = "long" * 40
    path = write_tar(tmp_path / "v.tar", {"readme": b"no sample", f"{key}.png": picture(1), f"{key}.cls": b"12"})
    ((shard, offset, size, label),) = shard_index.find_images([path]).tolist()
    assert path.read_bytes()[offset : offset + size] == picture(1)
    assert (shard, label) == (0, 12)
