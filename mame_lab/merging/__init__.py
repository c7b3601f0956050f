"""Token merging as tensor mathematics, and the methods by name."""

from typing import Any

from mame_lab.merging.atc import ATC
from mame_lab.merging.drop import Drop
from mame_lab.merging.evit import EViT
from mame_lab.merging.mame import MaMe
from mame_lab.merging.mctf import MCTF
from mame_lab.merging.method import Method
from mame_lab.merging.pitome import PiToMe
from mame_lab.merging.tofu import ToFu
from mame_lab.merging.tome import ToMe
from mame_lab.merging.tomesd import ToMeSD
from mame_lab.merging.ward import Ward

METHODS: dict[str, type[Method]] = {
    "ward": Ward,
    "mame": MaMe,
    "tome": ToMe,
    "pitome": PiToMe,
    "tofu": ToFu,
    "mctf": MCTF,
    "atc": ATC,
    "evit": EViT,
    "tomesd": ToMeSD,
    "drop": Drop,
}


def method_from(settings: dict[str, Any]) -> Method:
    """The method that plain values describe: those of the group `mame`, as a checkpoint carries them."""
    return METHODS[settings["method"]](**settings)
