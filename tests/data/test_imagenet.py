"""ImageNet: the 1000 class folders must be those of ILSVRC-2012, so that label k is output k of pretrained heads."""

import shutil

import pytest
from timm.data.imagenet_info import ImageNetInfo

from mame_lab.data import ImageNet
from mame_lab.errors import MameLabError

WNIDS = ImageNetInfo().label_names()


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory):
    """The layout of ImageNet's val alone; the files stay undecoded, so they are empty."""
    root = tmp_path_factory.mktemp("imagenet")
    for wnid in WNIDS:
        (root / "val" / wnid).mkdir(parents=True)
        (root / "val" / wnid / f"ILSVRC2012_val_{wnid}.JPEG").touch()
    return root


def test_val_alone_is_enough_to_evaluate(imagenet_root):
    splits = ImageNet(root=str(imagenet_root)).splits()
    assert splits.classes == WNIDS
    assert splits.train is None
    assert splits.test is splits.val
    assert all(WNIDS[label] in path for path, label in splits.val.files)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (WNIDS[7], None, f"of its 999 class folders the first wrong one is {WNIDS[8]} where {WNIDS[7]} belongs"),
        (WNIDS[999], None, f"of its 999 class folders the first wrong one is None where {WNIDS[999]} belongs"),
        (WNIDS[0], "tench", f"of its 1000 class folders the first wrong one is {WNIDS[1]} where {WNIDS[0]} belongs"),
        (WNIDS[2], "n01484851", "of its 1000 class folders the first wrong one is n01484851 where n01484850 belongs"),
    ],
)
def test_the_first_wrong_class_is_named(imagenet_root, tmp_path, old, new, message):
    moved = tmp_path / "moved"
    shutil.move(imagenet_root / "val" / old, moved)
    if new:
        shutil.copytree(moved, imagenet_root / "val" / new)
    try:
        with pytest.raises(MameLabError, match=f"^dataset.root={imagenet_root} is not ImageNet-1k: {message}"):
            ImageNet(root=str(imagenet_root)).splits()
    finally:
        if new:
            shutil.rmtree(imagenet_root / "val" / new)
        shutil.move(moved, imagenet_root / "val" / old)


def test_a_root_without_val_is_refused(tmp_path):
    with pytest.raises(MameLabError, match=f"^dataset.root={tmp_path} holds no val folder"):
        ImageNet(root=str(tmp_path)).splits()
