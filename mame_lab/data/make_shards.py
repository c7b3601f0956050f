"""Pack class folders into WebDataset shards for `dataset=shards`; the image files go in as they are.

python -m mame_lab.data.make_shards FOLDER OUT     FOLDER as for dataset=imagefolder; OUT must not exist
"""

import argparse
import sys
from pathlib import Path

from mame_lab.data.folders import ImageFiles
from mame_lab.data.imagefolder import ImageFolder
from mame_lab.data.paths import given_path
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError

SHARD_BYTES = 256e6


def make(folder: Path, out: Path) -> None:
    """Write `train`, `val` and, where it is not val, `test` as shards to `out`, and the names of the classes.

    Raises:
        MameLabError: `folder` is none that dataset=imagefolder takes, or `out` is there already.
    """
    if out.exists():
        raise MameLabError(f"{out} exists: name a new folder")
    splits = ImageFolder(root=str(folder)).splits()
    named = {"train": splits.train, "val": splits.val, "test": None if splits.test is splits.val else splits.test}
    for split, images in named.items():
        if images is not None:
            assert isinstance(images, ImageFiles)
            _write(images, out / split)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in splits.classes), encoding="utf-8")


def _write(images: ImageFiles, folder: Path) -> None:
    from webdataset import ShardWriter

    folder.mkdir(parents=True)
    pattern = f"{str(folder).replace('%', '%%')}/{folder.name}-%06d.tar"
    with ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, (path, label) in enumerate(track(images.files, f"writing {folder.name}")):
            image = Path(path)
            writer.write({"__key__": f"{number:08d}", image.suffix[1:].lower(): image.read_bytes(), "cls": label})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=given_path, metavar="FOLDER")
    parser.add_argument("out", type=given_path, metavar="OUT")
    arguments = parser.parse_args()
    try:
        make(arguments.folder, arguments.out)
    except MameLabError as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        sys.exit(f"error: {error}: pip install 'mame_lab[shards]'")
