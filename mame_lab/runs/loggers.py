"""Where metrics go: a CSV file in the run's folder, and TensorBoard or W&B if asked. The only import of wandb."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from mame_lab.errors import MameLabError
from mame_lab.runs import cli

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from mame_lab.measure.result import Result

log = logging.getLogger(__name__)

# Seconds that W&B may take to log in, to reach its server and, at the end, to send what is left (it stays on the disk,
# for `wandb sync`), unless these variables of the environment say otherwise.
TIMEOUTS = {"WANDB_LOGIN_TIMEOUT": "20", "WANDB_INIT_TIMEOUT": "20", "WANDB_FINISH_TIMEOUT": "300"}
LONGEST_TAG = 64
TRADEOFF = "tradeoff/accuracy_against_speed"


@dataclass
class Csv:
    """Metrics go to `metrics.csv`, each row as it comes."""

    name: str = "csv"

    def build(self, folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
        """Loggers that write to `folder` and hold the resolved `config` (plain values).

        Args:
            folder: of the run.
            config: see `config.plain`.
            step: where the run goes on, 0 for a new one; what an earlier start of it logged from there on is dropped.
        """
        from mame_lab.runs.metrics_file import MetricsFile

        return [MetricsFile(folder / "metrics.csv", step)]


@dataclass
class Wandb:
    """Metrics go to `metrics.csv` and to W&B, whose own environment variables hold (WANDB_MODE, WANDB_ENTITY, ...).

    Args:
        project, notes: as in `wandb.init`.
        group: as in `wandb.init`; None: in a sweep the name of its folder.
        tags: as in `wandb.init`, each shortened to 64 characters; none: in a sweep the overrides of the run.
        checkpoints: the checkpoint with the best `val/top1` is logged too, as an artifact of type model.
    """

    name: str = "wandb"
    project: str = "mame_lab"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    checkpoints: bool = False

    def build(self, folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
        """As `Csv.build`, and a W&B logger.

        Without a login or a network it goes offline with a warning; in a terminal W&B first asks for a login. Nothing
        that fails in W&B stops the run.
        """
        import wandb

        for variable, seconds in TIMEOUTS.items():
            os.environ.setdefault(variable, seconds)
        with _errors_as_warnings():
            wandb.finish()  # The run of an earlier job of a sweep would otherwise take this one's metrics.
        for mode in ({}, {"mode": "offline"}):
            try:
                logger = self._start(folder, step, **mode)
            except Exception as error:
                log.warning("W&B %s: %s", "is left out" if mode else "goes offline", _line(error))
            else:
                logger.log_hyperparams(config)
                return [*Csv().build(folder, config, step), logger]
        return Csv().build(folder, config, step)

    def _start(self, folder: Path, step: int, **mode: Any) -> Logger:
        from lightning.pytorch.utilities import rank_zero_only

        group, tags = _sweep()
        known = folder / "wandb" / "id"
        logger = _logger_class()(
            save_dir=folder,
            project=self.project,
            group=self.group or group,
            tags=list(dict.fromkeys(_shortened(tag) for tag in self.tags or tags)) or None,
            notes=self.notes,
            log_model=self.checkpoints,
            id=known.read_text() if step and known.exists() else None,
            **mode,
        )
        rank_zero_only(_write)(known, logger.experiment.id)  # Starts the run, on the first rank.
        return logger


@dataclass
class TensorBoard:
    """Metrics go to `metrics.csv` and to TensorBoard's event files, in `tensorboard` in the run's folder."""

    name: str = "tensorboard"

    def build(self, folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
        """As `Csv.build`, and a TensorBoard logger.

        Raises:
            MameLabError: TensorBoard is not installed.
        """
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            logger = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step)
        except ModuleNotFoundError as error:
            raise MameLabError("logger=tensorboard needs more: pip install 'mame_lab[tensorboard]'") from error
        logger.log_hyperparams(config)
        return [*Csv().build(folder, config, step), logger]


LOGGERS = {"csv": Csv, "tensorboard": TensorBoard, "wandb": Wandb}


def log_result(loggers: list[Logger], result: Result, step: int = 0) -> None:
    """Writes the scalars of a result (`test/ speed/ cost/ tokens/`) to every logger, at training step `step`.

    W&B also gets a scatter of accuracy against speed, merged and unmerged.
    """
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        logger.log_metrics(result.metrics(), step)
        if isinstance(logger, WandbLogger) and result.merged.top1:
            logger.log_metrics({TRADEOFF: _tradeoff(result)}, step)


def log_pictures(loggers: list[Logger], pictures: dict[str, Path]) -> None:
    """Gives W&B and TensorBoard the picture files of a run, each by a name; they lie in the run's folder anyway."""
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
    from matplotlib.image import imread

    for logger in loggers:
        for name, path in pictures.items():
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, imread(path), dataformats="HWC")


def logged_in() -> bool:
    """Whether this machine holds a login to W&B; nobody is asked for one, and no network is needed."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def _tradeoff(result: Result) -> Any:
    import wandb

    arms = {"merged": result.merged, "unmerged": result.unmerged}
    rows = [[name, arm.samples_per_s, arm.top1 and arm.top1.value] for name, arm in arms.items()]
    table = wandb.Table(columns=["model", "samples/s", "top-1"], data=rows)
    return wandb.plot.scatter(table, "samples/s", "top-1", "Accuracy against speed")


def _logger_class() -> type[Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import WandbLogger

    class TolerantWandbLogger(WandbLogger):
        """Fails with warnings, and has the checkpoints that are chosen by a metric as its artifacts."""

        log_hyperparams = _errors_as_warnings()(WandbLogger.log_hyperparams)
        log_metrics = _errors_as_warnings()(WandbLogger.log_metrics)
        log_image = _errors_as_warnings()(WandbLogger.log_image)
        finalize = _errors_as_warnings()(WandbLogger.finalize)

        def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
            if checkpoint_callback.monitor:
                super().after_save_checkpoint(checkpoint_callback)

    return TolerantWandbLogger


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    """What fails in it is a warning: neither W&B, nor its process, nor the network is worth a training."""
    try:
        yield
    except Exception as error:
        log.warning("W&B: %s", _line(error))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _sweep() -> tuple[str | None, list[str]]:
    """The name of the sweep that this run is of, and what tells it from the others; nothing for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None, []
    return Path(HydraConfig.get().sweep.dir).resolve().name, cli.overrides()


def _shortened(tag: str) -> str:
    return tag if len(tag) <= LONGEST_TAG else f"{tag[: LONGEST_TAG - 3]}..."
