"""Cut the photos of `dataset=sample_photos` into a small folder for `dataset=imagefolder`: which photo is it from?

python -m mame_lab.data.make_photos FOLDER     train, val and test share no pixel; FOLDER must be new or empty
"""

import argparse
import random
import sys
from itertools import product
from pathlib import Path

from mame_lab.data.paths import given_path
from mame_lab.data.progress import track
from mame_lab.data.sample_photos import KINDS, Box, read_photo
from mame_lab.errors import MameLabError

CELL = 1.25  # of its photo, over the side of a crop
HANDS = {"train": (0, 1), "val": (2,), "test": (3, 4)}  # Which of five cells each split is dealt.


def make(folder: Path, crops: int = 40, side: int = 64, seed: int = 0) -> None:
    """Write `train`, `val` and `test`, with a folder of PNGs a photo in each; the same for the same arguments.

    A photo is parted into cells, and each cell belongs to one split.

    Args:
        folder: where to.
        crops: of a photo, in train and in test; val has half as many.
        side: of a crop, pixels.
        seed: which crops these are.

    Raises:
        MameLabError: the folder holds something, a number is not positive, or a photo is too small for such crops.
    """
    if crops < 2 or side < 1:
        raise MameLabError(f"--crops={crops} --side={side}: give 2 crops or more, of 1 pixel or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MameLabError(f"{folder} exists and is no empty folder: name a new one")
    photos = {name: read_photo(package, name) for package, name in KINDS["all"]}
    cells = {name: deal(name, photo.size, side, random.Random(f"{seed} {name}")) for name, photo in photos.items()}
    for name, photo in track(photos.items(), "cutting photos"):
        for split, mine in cells[name].items():
            generator, here = random.Random(f"{seed} {name} {split}"), folder / split / Path(name).stem
            here.mkdir(parents=True)
            for number in range(crops // 2 if split == "val" else crops):
                box = square(mine[number % len(mine)], side, generator)
                photo.crop(box).save(here / f"{number:03d}.png")


def deal(name: str, size: tuple[int, int], side: int, generator: random.Random) -> dict[str, list[Box]]:
    """The cells of each split: a grid over a photo of width and height `size`, dealt out at random.

    Raises:
        MameLabError: there are too few cells.
    """
    columns, rows = (int(length / (CELL * side)) for length in size)
    if columns * rows < 5:
        raise MameLabError(f"--side={side} is too large for {name}, {size[0]} x {size[1]} pixels: give less")
    across, down = ([k * length // n for k in range(n + 1)] for length, n in zip(size, (columns, rows), strict=True))
    cells = [
        (*corner, *end)
        for corner, end in zip(product(across[:-1], down[:-1]), product(across[1:], down[1:]), strict=True)
    ]
    generator.shuffle(cells)
    return {split: [cell for i, cell in enumerate(cells) if i % 5 in hand] for split, hand in HANDS.items()}


def square(cell: Box, side: int, generator: random.Random) -> Box:
    """The box of a crop at a random place in a cell."""
    left, top = generator.randint(cell[0], cell[2] - side), generator.randint(cell[1], cell[3] - side)
    return left, top, left + side, top + side


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=given_path, metavar="FOLDER")
    parser.add_argument("--crops", type=int, default=40, help="of a photo, in train and in test; val has half as many")
    parser.add_argument("--side", type=int, default=64, help="of a crop, pixels")
    parser.add_argument("--seed", type=int, default=0, help="which crops these are")
    arguments = parser.parse_args()
    try:
        make(**vars(arguments))
    except MameLabError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}: name another folder")
    print(f"Written to {arguments.folder}: use it with dataset=imagefolder dataset.root={arguments.folder}")
