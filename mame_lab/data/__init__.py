"""Datasets by the name that the configuration selects them with; importing this needs no torch."""

from mame_lab.data.cifar import Cifar10, Cifar100
from mame_lab.data.dataset import ImageDataset
from mame_lab.data.digits import Digits
from mame_lab.data.imagefolder import ImageFolder
from mame_lab.data.imagenet import ImageNet
from mame_lab.data.kinetics import Kinetics400
from mame_lab.data.moving_digits import MovingDigits
from mame_lab.data.prompts import Prompts
from mame_lab.data.sample_photos import SamplePhotos
from mame_lab.data.shards import Shards
from mame_lab.data.unlabelled import Unlabelled

DATASETS: dict[str, type[ImageDataset | Prompts]] = {
    "digits": Digits,
    "sample_photos": SamplePhotos,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "imagefolder": ImageFolder,
    "unlabelled": Unlabelled,
    "imagenet": ImageNet,
    "shards": Shards,
    "moving_digits": MovingDigits,
    "kinetics400": Kinetics400,
    "prompts": Prompts,
}
