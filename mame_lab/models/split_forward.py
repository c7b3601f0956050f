"""A forward pass in two parts: what comes before a stage, and what follows from there.

The stages of a model of D blocks are its blocks 0 to D - 1, the final norm with the pooling (D), and the head (D + 1).
S samples, B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mame_lab.merging.method import Method
from mame_lab.merging.state import MergeState, attention_bias


class Sample(NamedTuple):
    """What of a single sample enters a stage.

    Attributes:
        x_NC: its tokens; one that holds the pooled feature, where it enters the head.
        size_N1, origin_N: as in `MergeState`, None before the first merge and at the head.
    """

    x_NC: Tensor
    size_N1: Tensor | None = None
    origin_N: Tensor | None = None

    def cpu(self) -> Sample:
        return Sample(self.x_NC.cpu(), *(None if tensor is None else tensor.cpu() for tensor in self[1:]))


class BlockInput(NamedTuple):
    """What of a batch enters a stage. `MergingClassifier.block_input` gives it, and the model takes it as input.

    Plans are not part of it, for logits need no full sequence; `origin_BN` says where the tokens lie.

    Attributes:
        stage: the number of the stage.
        x_BNC: as `Sample.x_NC`, shorter samples padded.
        size_BN1, origin_BN, valid_BN: as in `MergeState`.
        logits_BK: those of a teacher, where there is one.
    """

    stage: int
    x_BNC: Tensor
    size_BN1: Tensor | None = None
    origin_BN: Tensor | None = None
    valid_BN: Tensor | None = None
    logits_BK: Tensor | None = None

    def state(self, prefix: int, pack: bool, method: Method) -> MergeState:
        """The state of the forward pass at this stage."""
        bias_B11N = None
        if self.size_BN1 is not None:
            bias_B11N = attention_bias(self.size_BN1, self.valid_BN, method.prop_attn)
        return MergeState(
            prefix,
            pack=pack,
            size_BN1=self.size_BN1,
            origin_BN=self.origin_BN,
            valid_BN=self.valid_BN,
            bias_B11N=None if bias_B11N is None else bias_B11N.to(self.x_BNC.dtype),
        )

    def samples(self) -> Iterator[Sample]:
        """Each sample by itself, without padding."""
        for b, x_NC in enumerate(self.x_BNC):
            valid = slice(None) if self.valid_BN is None else self.valid_BN[b]
            size_BN1, origin_BN = self.size_BN1, self.origin_BN
            yield Sample(
                x_NC[valid],
                None if size_BN1 is None else size_BN1[b][valid],
                None if origin_BN is None else origin_BN[b][valid],
            )


def join(stage: int, samples: list[Sample]) -> BlockInput:
    """The samples as one batch, the shorter ones padded."""
    x_SNC, size_SN1, origin_SN = (list(column) for column in zip(*samples, strict=True))
    x_BNC = pad_sequence(x_SNC, batch_first=True)
    if size_SN1[0] is None:
        return BlockInput(stage, x_BNC)
    lengths_S1 = torch.tensor([len(x_NC) for x_NC in x_SNC])[:, None]
    padded = bool(lengths_S1.min() < lengths_S1.max())
    return BlockInput(
        stage,
        x_BNC,
        pad_sequence(size_SN1, batch_first=True),
        pad_sequence(origin_SN, batch_first=True),
        torch.arange(x_BNC.shape[1]) < lengths_S1 if padded else None,
    )


def first_trained(split_model: nn.Module, depth: int, x: Tensor) -> int:
    """The first stage that holds what trains; -1 if something before all blocks does.

    Args:
        split_model: of a family's `splittable_copy`, with D = `depth` blocks.
        x: an input of it, the batch of any size.
    """
    with torch.enable_grad():
        return next((stage for stage in range(depth + 1, -1, -1) if _is_frozen(split_model.block_input(x, stage))), -1)


def _is_frozen(block_input: BlockInput) -> bool:
    return not block_input.x_BNC.requires_grad
