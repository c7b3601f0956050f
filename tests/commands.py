"""How tests compose the configuration and run train.py and eval.py in their own process."""

import importlib.util
from pathlib import Path
from types import ModuleType

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

from mame_lab.runs import config

ROOT = Path(__file__).parents[1]
ENTRIES = {"train": config.TrainConfig, "eval": config.EvalConfig}
PIPELINE = ["model=sd_mini", "dataset=prompts"]

# A ViT of 3 blocks on a handful of digits: seconds for a whole run.
TINY = [
    "model.img_size=40",
    "model.args.depth=3",
    "model.args.embed_dim=16",
    "model.args.num_heads=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=2",
    "trainer.enable_progress_bar=false",
    "speed.batch_size=4",
    "speed.max_rounds=2",
    "speed.seconds=0.1",
    "speed.cost_samples=2",
]
# The same for a benchmark, which times in its own way.
BENCHMARK = [override for override in TINY if not override.startswith("speed.")]

# 12 photos from the feature cache.
CACHED = ["finetune.cache=true", "dataset.batch_size=8", "dataset.augment=none"]
PHOTOS = ["dataset=sample_photos", "dataset.kind=textures", "dataset.crops=4"]

# A pipeline of a U-Net of 8 channels, for images of 96 x 64 px in 2 steps.
SD_MINI = [
    "model=sd_mini",
    "model.args.unet.block_out_channels=[8,8,8]",
    "model.args.unet.norm_num_groups=4",
    "model.args.unet.attention_head_dim=2",
    "dataset=prompts",
    "dataset.steps=2",
    "dataset.count=2",
    "dataset.height=64",
    "dataset.width=96",
    "dataset.metrics=[]",
    "trainer.accelerator=cpu",
    "speed.max_rounds=2",
    "speed.seconds=0.1",
]


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """What `python NAME.py OVERRIDES` composes, with Hydra's own part."""
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True)


def values(name: str, *overrides: str) -> dict:
    """The same as plain values, without Hydra's own part."""
    cfg = compose_config(name, list(overrides))
    with open_dict(cfg):
        del cfg["hydra"]
    return config.plain(cfg)


def typed(name: str, *overrides: str) -> config.Config:
    """The same as the dataclasses of the parts."""
    return config.typed(ENTRIES[name], values(name, *overrides))


def load(name: str) -> ModuleType:
    """train.py or eval.py as a module."""
    spec = importlib.util.spec_from_file_location(f"entry_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
