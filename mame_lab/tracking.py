"""Where metrics go: a CSV file in the run's folder, and Weights & Biases if asked. The only import of wandb."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

WANDB_TIMEOUT = 20
"""Seconds that W&B may take to log in or to reach its server, unless its own environment variables say otherwise."""


@dataclass
class Csv:
    """Metrics go to `metrics.csv`, each row as it comes."""

    name: str = "csv"

    def build(self, folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
        """Loggers that write to `folder` and hold the resolved `config` (plain values).

        Args:
            folder: of the run.
            config: see `config.plain`.
            step: where the run goes on; what an earlier start of it logged from this step on is dropped.
        """
        from mame_lab.metrics_file import MetricsFile

        return [MetricsFile(folder / "metrics.csv", step)]


@dataclass
class Wandb:
    """Metrics go to `metrics.csv` and to W&B, whose own environment variables hold (WANDB_MODE, WANDB_ENTITY, ...).

    Args:
        project, group, tags, notes: as in `wandb.init`.
    """

    name: str = "wandb"
    project: str = "mame_lab"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None

    def build(self, folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
        """As `Csv.build`, and a W&B logger.

        Without a login or a network it goes offline with a warning; in a terminal W&B first asks for a login.
        """
        import wandb

        for variable in ("WANDB_INIT_TIMEOUT", "WANDB_LOGIN_TIMEOUT"):
            os.environ.setdefault(variable, str(WANDB_TIMEOUT))
        wandb.finish()  # The run of an earlier job of a sweep would otherwise take this one's metrics.
        try:
            logger = self._start(folder)
        except wandb.Error as error:
            log.warning("W&B goes offline: %s", str(error).splitlines()[0])
            logger = self._start(folder, mode="offline")
        logger.log_hyperparams(config)
        return [*Csv().build(folder, config, step), logger]

    def _start(self, folder: Path, **mode: Any) -> Logger:
        from lightning.pytorch.loggers import WandbLogger

        logger = WandbLogger(
            save_dir=folder,
            project=self.project,
            group=self.group,
            tags=self.tags or None,
            notes=self.notes,
            **mode,
        )
        _ = logger.experiment  # Starts the run, on the first rank.
        return logger


LOGGERS = {"csv": Csv, "wandb": Wandb}


def log_result(loggers: list[Logger], metrics: dict[str, float], step: int = 0) -> None:
    """Writes the final scalars of a run (`test/ speed/ cost/ tokens/`) to every logger, at training step `step`."""
    for logger in loggers:
        logger.log_metrics(metrics, step)


def log_pictures(loggers: list[Logger], pictures: dict[str, Path]) -> None:
    """Gives W&B the picture files of a run, each by a name; for the CSV logger they lie in the run's folder already."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name, path in pictures.items():
                logger.log_image(name, [str(path)])
