import importlib.util
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

ROOT = Path(__file__).parents[1]

# A ViT of 2 blocks on a handful of digits: seconds for a whole run.
TINY = [
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


def compose_config(name: str, overrides: list[str]):
    """What `python NAME.py OVERRIDES` composes, with Hydra's own part."""
    from mame_lab import config

    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True)


@pytest.fixture
def entry_point(monkeypatch):
    """Runs train.py or eval.py in this process: entry_point("train", folder, *overrides)."""

    def run(name: str, folder: Path, *overrides: str) -> None:
        cfg = compose_config(name, list(overrides))
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            cfg.hydra.overrides.task = list(overrides)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        folder.mkdir(parents=True, exist_ok=True)
        module = load(name)
        (module.train if name == "train" else module.evaluate)(cfg)

    yield run
    HydraConfig.instance().cfg = None


def load(name: str):
    """train.py or eval.py as a module."""
    spec = importlib.util.spec_from_file_location(f"entry_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
