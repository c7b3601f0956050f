"""What all datasets share: typed settings, their validation, their place in `DATASETS` and in `conf/dataset`."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mame_lab.data import DATASETS
from mame_lab.data.dataset import ImageDataset
from mame_lab.errors import MameLabError

IMAGES = [name for name, settings in DATASETS.items() if issubclass(settings, ImageDataset)]
CONF = Path(__file__).parents[2] / "conf" / "dataset"


def test_every_dataset_has_its_file_in_conf():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("name", IMAGES)
def test_settings_pass_through_omegaconf(name):
    settings = OmegaConf.structured(DATASETS[name])
    settings.num_workers = None
    dataset = OmegaConf.to_object(settings)
    assert type(dataset) is DATASETS[name]
    assert dataset.name == name


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(("key", "value"), [("augment", "flip"), ("batch_size", 0), ("num_workers", -1)])
def test_bad_settings_are_named(name, key, value):
    with pytest.raises(MameLabError, match=f"^dataset.{key}={value} is"):
        OmegaConf.to_object(OmegaConf.merge(DATASETS[name], {key: value}))


def test_importing_the_settings_imports_nothing_heavy():
    heavy = ["torch", "torchvision", "lightning", "timm", "sklearn", "skimage"]
    code = f"import sys, mame_lab.data, mame_lab.data.preprocessing; print(set({heavy}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
