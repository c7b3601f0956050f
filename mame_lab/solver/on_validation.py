"""Solving a target on validation images, once for all processes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Trainer
from torch import nn

from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.measure.first_process import of_first
from mame_lab.measure.precision import converted, prepared
from mame_lab.merging import Method
from mame_lab.solver.solve import CALIBRATION_IMAGES, solve


def solve_on_validation(model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> Method:
    """`solve` on validation images, as the first process finds; what it found is printed and saved to be given back."""
    if not method.has_target:
        return method
    if method.speedup is not None and trainer.world_size > 1:
        raise MameLabError(
            f"mame.speedup={method.speedup} is measured on one device, here are {trainer.world_size}: solve it with "
            f"trainer.devices=1 and give back the schedule that is printed"
        )
    images = converted(data.sample(CALIBRATION_IMAGES, "val")[0], trainer)
    with trainer.precision_plugin.forward_context():
        solved = of_first(trainer, lambda: solve(prepared(model, trainer), method, images))
    if trainer.is_global_zero:
        from rich import get_console

        path = save(solved, folder)
        get_console().print(f"Solved: {solved}")
        get_console().print(f"Saved: use it again with --config-dir {path.parents[1]} mame={path.stem}", soft_wrap=True)
    return solved


def save(method: Method, folder: Path) -> Path:
    """Write a method as the choice `solved` of the group `mame`, to be given back with --config-dir FOLDER."""
    from omegaconf import OmegaConf

    said = {key: value for key, value in asdict(method).items() if value is not None}
    path = folder / "mame" / "solved.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = [f"/schema/mame/{method.method}@_here_", "_self_"]
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults} | said)))
    return path
