"""The processes that a run starts for other devices, and their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

from lightning.pytorch import Trainer

# What tells a process its place among others; Lightning sets it where nobody else has.
RANK = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")


@contextmanager
def processes(trainer: Trainer) -> Iterator[None]:
    """What runs in it may start processes for other devices. They end with it: are waited for, or killed on an error.

    Afterwards this process is as alone as before, so that the next job of a sweep can start its own.
    """
    from torch import distributed

    before = set(os.environ)
    try:
        yield
        for child in _children(trainer):
            child.wait()
    except BaseException:
        for child in _children(trainer):
            child.kill()
        raise
    finally:
        if before.isdisjoint(RANK) and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in set(RANK) - before:
            os.environ.pop(name, None)


def _children(trainer: Trainer) -> list[Any]:
    return [child for child in getattr(trainer.strategy.launcher, "procs", ()) if isinstance(child, Popen)]
