"""The memory that a call takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def peak_memory(call: Callable[[], object], device: torch.device | str) -> int | None:
    """The most bytes that tensors made during one call held at a time, beyond what was there before it.

    Weights and inputs are thus not counted; activations, and in training gradients, are. On CUDA it is the allocator's
    peak, which includes the kernels' workspaces; on CPU the storages of all tensors that operators return, which does
    not. None on other devices, which do not tell. Call it once before if the call fills caches.
    """
    device = torch.device(device)
    if device.type == "cpu":
        with _LiveStorages() as live:
            call()
        return live.peak
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory_mb(call: Callable[[], object], device: torch.device | str) -> float | None:
    """The same in megabytes, of 1e6 bytes."""
    count = peak_memory(call, device)
    return None if count is None else count / 1e6


class _LiveStorages(TorchDispatchMode):
    """Watches every operator for storages that are new, and forgets them when the last tensor on them is gone."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._live = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        self._live.update({storage: None for storage in _storages(result) if id(storage) not in given})
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self._live))
        return result


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
