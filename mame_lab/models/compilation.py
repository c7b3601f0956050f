"""torch.compile for the models of a run, all in the same way."""

from __future__ import annotations

import logging

import torch
from torch import nn

from mame_lab.errors import MameLabError
from mame_lab.models.merging_transformer import MergingBlock

# Without and with a mask, in training, evaluation and inference mode, of one sample and of several.
GRAPHS_OF_A_BLOCK = 12

log = logging.getLogger(__name__)


def check_compiles(model: nn.Module, device: torch.device | str, key: str = "compile") -> None:
    """Raise MameLabError where a model does not compile, or torch.compile does not work on a device.

    Args:
        model: as it is to be compiled.
        device: where it runs.
        key: what asks for it.
    """
    method = vars(model).get("method")
    if method is not None and method.packed:
        raise MameLabError(
            f"{key}=true and mame.batching=packed exclude each other, for packed attention would be compiled anew for "
            f"the lengths of every batch: take mame.batching=per_sample or set {key}=false"
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
    """Let models run through torch.compile, in place.

    With a budget as one graph for each batch size and mode that they meet; with `graphs` a GPU records its kernels and
    replays them (CUDA graphs): the outputs of a call hold until the next. Where the images decide how many tokens are
    removed, the merge steps run eagerly, and the blocks share the few graphs of what lies between, for all lengths and
    all batches of more than one; blocks of different drop rates have their own in training.

    Parameters and their names stay as they are; copies of a model are not compiled. What the process compiled before is
    forgotten, so that the jobs of a sweep do not together exceed PyTorch's limit on compilations.
    """
    torch.compiler.reset()
    for model in models:
        method = vars(model).get("method")
        if method is None or not (method.is_adaptive or "graph" in method.gives_up):
            model.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)
            continue
        blocks = [module for module in model.modules() if isinstance(module, MergingBlock)]
        # Blocks of different drop rates have graphs of their own, in each mode.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, GRAPHS_OF_A_BLOCK * len(blocks))
        for block in blocks:
            block.compile_halves()
    log.info("compile=true: the first batch of each size takes long, up to minutes on a CPU")
