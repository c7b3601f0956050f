"""Sweeps: what cannot be composed fails alone, what fails says why in its folder, and a report is made at the end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mame_lab.errors import MameLabError
from mame_lab.runs.cli import explain, write_reason

PLUGINS = "hydra._internal.core_plugins.mame_lab"

log = logging.getLogger(__name__)

Overrides = list[str]


class Sweep(Sweeper):
    """Hydra's basic sweeper, except that a run that is wrong does not keep the others from running.

    Args:
        max_batch_size: runs that are given to the launcher at a time; None: all.
        params: overrides that the configuration itself gives, by key.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}
        self.left_out: list[Path] = []  # the folders of the runs that could not be composed

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context: Any = hydra_context
        self.config: Any = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @property
    def folder(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all, make the report, and only then fail.

        Raises:
            MameLabError: runs failed or could not be composed.
        """
        said = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(said)
        self.start()
        results = []
        try:
            for batch in BasicSweeper.split_arguments(parsed, self.max_batch_size):
                results += self.launch(batch, len(results))
        finally:
            make_report(self.folder)
        failed = sum(each.status.name != "COMPLETED" for each in results) + len(self.left_out)
        if failed:
            raise MameLabError(f"{failed} of {len(results) + len(self.left_out)} runs failed: see {self.folder}")
        return results

    def start(self) -> None:
        """Make the folder of the sweep, with its configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")

    def launch(self, batch: list[Overrides], first: int) -> list[Any]:
        """Run those of the batch that can be composed, numbered from `first`; returns Hydra's JobReturns."""
        legal = [overrides for overrides in batch if self._composes(overrides)]
        return list(self.launcher.launch(legal, initial_job_idx=first)) if legal else []

    def _composes(self, overrides: Overrides) -> bool:
        """Whether a run can be composed; if not, a folder of its own says why."""
        try:
            self.validate_batch_is_legal([overrides])
            return True
        except (HydraException, OmegaConfBaseException) as error:
            folder = self.folder / f"left_out_{len(list(self.folder.glob('left_out_*')))}"
            self.left_out.append(folder)
            (folder / ".hydra").mkdir(parents=True)
            OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
            write_reason(folder, explain(error))
            log.error("Left out: %s: %s", " ".join(overrides), explain(error))
            return False


def make_report(folder: Path) -> None:
    """Make the report of all runs in the folder of a sweep and say where it is, in the first of several processes."""
    if os.environ.get("RANK", "0") != "0":
        return
    from mame_lab import report

    try:
        log.info("Report: %s", report.make([folder], folder))
    except Exception:
        log.exception("No report; python -m mame_lab.report %s makes it again", folder)


def register(sweeper: type[Sweeper]) -> None:
    """Make a sweeper known to Hydra, which takes them from its own packages alone: its `_target_` is PLUGINS.NAME."""
    sys.modules.setdefault(PLUGINS, ModuleType(PLUGINS))
    setattr(sys.modules[PLUGINS], sweeper.__name__, sweeper)
    sweeper.__module__ = PLUGINS
    Plugins.instance().register(sweeper)
