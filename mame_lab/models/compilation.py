"""torch.compile for the models of a run, all in the same way."""

from __future__ import annotations

import logging

import torch
from torch import nn

from mame_lab.errors import MameLabError

log = logging.getLogger(__name__)


def check_compiles(model: nn.Module, device: torch.device | str, key: str = "compile") -> None:
    """Raise MameLabError where a model does not compile into one graph, or torch.compile does not work on a device.

    Args:
        model: as it is to be compiled.
        device: where it runs.
        key: what asks for it.
    """
    method = vars(model).get("method")
    if method is not None and method.is_adaptive:
        raise MameLabError(
            f"{key}=true needs a budget: mame={method.method} without mame.r lets the images decide how many tokens "
            f"are removed, so that it compiles to dozens of graphs; set mame.r or {key}=false"
        )
    if method is not None and "graph" in method.gives_up:
        raise MameLabError(
            f"{key}=true and mame={method.method} exclude each other, for that does not compile into one graph: take "
            f"another method or set {key}=false"
        )
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise MameLabError(
            f"{key}=true does not work on this machine ({reason}): install a C++ compiler and, for a GPU, Triton, or "
            f"set {key}=false"
        ) from error


def compile_models(*models: nn.Module, graphs: bool = False) -> None:
    """Let models run through torch.compile: in place, as one graph for each batch size and mode that they meet.

    With `graphs` a GPU records its kernels and replays them (CUDA graphs): the outputs of a call hold until the next.

    Parameters and their names stay as they are; copies of a model are not compiled. What the process compiled before is
    forgotten, so that the jobs of a sweep do not together exceed PyTorch's limit on compilations.
    """
    torch.compiler.reset()
    for model in models:
        model.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)
    log.info("compile=true: the first batch of each size takes long, up to minutes on a CPU")
