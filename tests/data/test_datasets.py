"""What all datasets share: typed settings, their validation, their place in `DATASETS` and in `conf/dataset`."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mame_lab import data
from mame_lab.data import DATASETS
from mame_lab.data.dataset import ImageDataset
from mame_lab.errors import MameLabError
from mame_lab.models.renames import VALUES

IMAGES = [name for name, settings in DATASETS.items() if issubclass(settings, ImageDataset)]
CONF = Path(__file__).parents[2] / "conf" / "dataset"


def test_every_dataset_has_its_file_in_conf():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*DATASETS, *VALUES["dataset.name"]}


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


PATHS = [(name, key) for name, made in DATASETS.items() for key in ("root", "file", "reference") if hasattr(made, key)]


@pytest.mark.parametrize(("name", "key"), PATHS)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_path_is_refused(name, key, value):
    with pytest.raises(MameLabError, match=f"^dataset.{key}='{value}' is empty: give a path"):
        OmegaConf.to_object(OmegaConf.merge(DATASETS[name], {key: value}))


@pytest.mark.parametrize("command", [["make_photos", ""], ["make_shards", " ", "out"], ["make_shards", "in", ""]])
def test_an_empty_path_of_a_command_is_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        runpy.run_path(str(Path(data.__file__).with_name(f"{command[0]}.py")), run_name="__main__")
    assert " is empty: give a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_importing_the_settings_imports_nothing_heavy():
    heavy = ["torch", "torchvision", "lightning", "timm", "sklearn", "skimage"]
    code = f"import sys, mame_lab.data, mame_lab.data.preprocessing; print(set({heavy}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
