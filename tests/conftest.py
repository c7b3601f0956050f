import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# One thread for each of pytest's workers, and for what they start: more would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from commands import compose_config, load
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from mame_lab.training.resume import PerStepSeed


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keeps what tests compute away from the user's own cache."""
    monkeypatch.setenv("MAME_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def entry_point():
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


@pytest.fixture
def stopped(monkeypatch):
    """A run in this process is stopped in it before an update of the weights: with stopped(at=5): ..."""

    class StopError(Exception):
        pass

    @contextmanager
    def stop(at: int) -> Iterator[None]:
        start = PerStepSeed.on_train_batch_start

        def before(self, trainer, *arguments):
            if trainer.global_step == at:
                raise StopError
            start(self, trainer, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(PerStepSeed, "on_train_batch_start", before)
            try:
                yield
            except StopError:
                return
        pytest.fail(f"The run was not stopped at {at}.")

    return stop
