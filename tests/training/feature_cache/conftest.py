"""What enters the last blocks of a small model for a few images, kept in a folder of the test's own."""

from dataclasses import replace

import pytest
import torch
from commands import CACHED, PHOTOS, TINY, compose_config
from omegaconf import open_dict

import mame_lab
from mame_lab import models
from mame_lab.data.datamodule import ImageData
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.runs import config
from mame_lab.training import freeze
from mame_lab.training.feature_cache import compute
from mame_lab.training.feature_cache.data import CachedData


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder; files hold about three samples."""
    monkeypatch.setenv("MAME_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compute, "FILE_BYTES", 3 * 101 * 16 * 4)
    return tmp_path / "cache"


@pytest.fixture
def cached(tmp_path):
    """Makes the TrunkData that train.py makes of these overrides, with what is kept of it."""

    def make(*overrides, images=PHOTOS, recipe="last_layer", teacher=None) -> CachedData:
        tiny = [each for each in TINY if not each.startswith("model.") or not images[0].startswith("model=")]
        composed = compose_config("train", [*tiny, *CACHED, *images, f"finetune={recipe}", *overrides])
        with open_dict(composed):
            del composed["hydra"]
        values = config.plain(composed)
        run = config.typed(config.TrainConfig, values)
        family = models.family(run.model.family)
        torch.manual_seed(run.seed)
        model = family.load(run.model)
        data = ImageData(run.dataset, Preprocessing(**family.data_config(model)), run.seed)
        family.match_classes(model, len(data.classes))
        mame_lab.apply(model, run.mame)
        freeze.freeze(model, run.finetune)
        found = CachedData(data, model, run.context(values, tmp_path), teacher)
        found.trainer = replace(run.trainer, limit_train_batches=1.0, limit_val_batches=1.0).build(tmp_path, [])
        found.setup("fit")
        return found

    return make
