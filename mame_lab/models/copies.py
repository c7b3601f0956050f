"""Copies of a model that share its weights."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy that shares all parameters and buffers."""
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
