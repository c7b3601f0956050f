"""Write the model of a run, with its merging, as one file that runs without mame_lab.

python -m mame_lab.export ckpt=outputs/train/RUN/checkpoints/best.ckpt format=onnx
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor, nn

    from mame_lab.merging.method import Method

FORMATS = ("onnx", "pt2")
# The largest batch that an exported file takes, and the images on which it is held against the model.
MOST, CHECKED = 1024, 4
# The relative error of the logits that rounding explains.
TOLERANCE = 1e-3


@dataclass
class Export:
    """What to write.

    Args:
        ckpt: the best.ckpt or last.ckpt of a run of train.py, whose schedule is a budget.
        format: `onnx`, for onnxruntime and TensorRT; `pt2`, compiled by AOTInductor for the processor of this machine,
            to be loaded by torch._inductor.aoti_load_package. Both take batches of up to `MOST`.
        out: the file, whose name ends in the format. None: beside the checkpoint.
    """

    ckpt: str
    format: str = "onnx"
    out: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise MameLabError(f"format={self.format} is not known: choose from {', '.join(FORMATS)}")
        if self.out and not self.out.endswith(f".{self.format}"):
            raise MameLabError(f"out={self.out}: give a name that ends in .{self.format}")

    @property
    def path(self) -> Path:
        return Path(self.out) if self.out else Path(self.ckpt).with_suffix(f".{self.format}")


def export(settings: Export) -> float:
    """Write the file. Returns the relative error of its logits on images of noise.

    Raises:
        MameLabError: there is no such checkpoint, its merging depends on the images, a package is missing, or what was
            written computes something else.
    """
    import torch

    model, shape = merged_model(settings.ckpt)
    images_B3HW = torch.randn(CHECKED, *shape, generator=torch.Generator().manual_seed(0))
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=MOST)
        program = torch.export.export(model, (images_B3HW,), dynamic_shapes=({0: batch},))
        with kept_if_right(settings.path):
            write = _write_onnx if settings.format == "onnx" else _write_pt2
            logits_BK, expected_BK = write(program, images_B3HW, settings.path), model(images_B3HW)
            error = ((logits_BK - expected_BK).norm() / expected_BK.norm()).item()
            if not error < TOLERANCE:
                raise MameLabError(f"format={settings.format}: the logits differ by {error:.1e}, so nothing is kept")
    return error


@contextmanager
def kept_if_right(path: Path) -> Iterator[None]:
    """Deletes what was written where anything goes wrong."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def merged_model(ckpt: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The model of a checkpoint with its merging applied, in eval mode, and the shape of its inputs."""
    from mame_lab import models
    from mame_lab.merging import method_from
    from mame_lab.models import checkpoint
    from mame_lab.models.settings import ModelSettings

    stored = checkpoint.read(ckpt)
    method = method_from(stored.config["mame"])
    if reason := _unfit(method):
        raise MameLabError(
            f"ckpt={ckpt} was trained with mame={method}, {reason}: train with mame=ward mame.r=8 instead"
        )
    settings = ModelSettings(**stored.config["model"])
    model = models.load(settings, stored).eval()
    data = models.family(settings.family).data_config(model)
    frames = (data["frames"],) if data.get("frames") else ()
    return models.apply(model, method), (*frames, 3, *data["size"])


def _unfit(method: Method) -> str | None:
    """Why a method cannot be in a file."""
    if method.is_adaptive:
        return "by which the images decide how many tokens are removed, and a file has one number for all"
    if "graph" in method.gives_up:
        return "which does not compile into one graph"
    return "which draws anew in every pass" if method.random else None


def _write_onnx(program: torch.export.ExportedProgram, images_B3HW: Tensor, path: Path) -> Tensor:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MameLabError(f"format=onnx needs {error.name}: pip install onnx onnxscript onnxruntime") from error
    torch.onnx.export(program, f=path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits_BK,) = session.run(None, {session.get_inputs()[0].name: images_B3HW.numpy()})
    return torch.from_numpy(logits_BK)


def _write_pt2(program: torch.export.ExportedProgram, images_B3HW: Tensor, path: Path) -> Tensor:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    aoti_compile_and_package(program, package_path=str(path))
    return aoti_load_package(str(path))(images_B3HW)


def parsed(arguments: list[str]) -> Export:
    """The settings from key=value arguments."""
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    unknown = [key for key in given if key not in Export.__dataclass_fields__]
    if unknown or "ckpt" not in given:
        raise MameLabError(
            f"{unknown[0] if unknown else 'ckpt'} is {'not known' if unknown else 'missing'}: give ckpt=FILE, "
            f"format={'|'.join(FORMATS)}, out=FILE"
        )
    return Export(**given)


def main() -> None:
    try:
        settings = parsed(sys.argv[1:])
        differ = export(settings)
    except MameLabError as error:
        sys.exit(f"error: {error}")
    print(f"Written to {settings.path}: the logits of {CHECKED} images of noise differ by {differ:.1e}, relative")


if __name__ == "__main__":
    main()
