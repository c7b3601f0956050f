"""What merging by a method costs, and what it loses by three measures.

B images in a batch, N images, M training images, P patch tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mame_lab.benchmarks.frontier.linear_head import LinearHead
from mame_lab.data.progress import track
from mame_lab.measure.cost import gflops
from mame_lab.measure.fidelity import Fidelity, wide
from mame_lab.measure.paired import PairedHits
from mame_lab.merging import Method
from mame_lab.models import apply, family_of, shared_copy


class Loss(NamedTuple):
    """What a method costs and loses.

    Attributes:
        cost: share of the unmerged model's multiply-adds, mean over the images.
        feature_error: of the pooled feature, which enters the head; see `fidelity.Distance`.
        token_error: of the patch tokens after the final norm, restored to the full grid: mean |merged - unmerged| over
            mean |unmerged - mean over all patches of all images|.
        top1: of a linear head on the pooled feature; None: not measured.
    """

    cost: float
    feature_error: float
    token_error: float
    top1: PairedHits | None

    def ratios(self, reference: Loss | None) -> tuple[float | None, float | None, float | None]:
        """What is lost by each measure over what another method loses, None where that loses nothing or is None."""
        if reference is None:
            return None, None, None
        return (
            _ratio(self.feature_error, reference.feature_error),
            _ratio(self.token_error, reference.token_error),
            _ratio(self.top1.net_loss, reference.top1.net_loss) if self.top1 and reference.top1 else None,
        )


class Losses:
    """What methods cost and lose in one model on the same images.

    Args:
        model: unmerged, in eval mode; it is left as it was.
        images: (N, 3, H, W), preprocessed, on the model's device.
        batch_size: images in a batch.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch_size: int) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self.head: LinearHead | None = None
        self.gflops, self.costs = gflops(model, images), {}
        features, self.patches = zip(*self._passes(model, images, "unmerged"), strict=True)
        self.feature_NC = torch.cat(features)
        mean_C = torch.stack([wide(patches_BPC).mean(1).sum(0) for patches_BPC in self.patches]).sum(0) / len(images)
        self.spread = sum(_distance(patches_BPC, mean_C) for patches_BPC in self.patches)

    def fit_head(self, label_N: Tensor, images: Tensor, label_M: Tensor) -> None:
        """Measure top-1 too, by a linear head.

        Args:
            label_N: of the images that are measured on.
            images, label_M: to fit the head on (M, 3, H, W).
        """
        features = [feature_BC for feature_BC, _ in self._passes(self.model, images, "features for a linear head")]
        self.head = LinearHead(torch.cat(features), label_M, self.feature_NC, label_N)

    def cost(self, method: Method) -> float:
        """The share of the unmerged model's multiply-adds, mean over the images."""
        if str(method) not in self.costs:
            self.costs[str(method)] = gflops(apply(shared_copy(self.model), method), self.images) / self.gflops
        return self.costs[str(method)]

    def __call__(self, method: Method) -> Loss:
        merged, features, moved = apply(shared_copy(self.model), method), [], 0.0
        passes = self._passes(merged, self.images, f"measuring {method.method}")
        for (feature_BC, patches_BPC), unmerged_BPC in zip(passes, self.patches, strict=True):
            features.append(feature_BC)
            moved += _distance(patches_BPC, unmerged_BPC)
        feature_NC, fidelity = torch.cat(features), Fidelity()
        fidelity.update(None, None, feature_NC, self.feature_NC)
        return Loss(
            self.cost(method),
            fidelity.compute().feature_error,
            moved / self.spread if moved else 0.0,
            None if self.head is None else self.head(feature_NC),
        )

    def _passes(self, model: nn.Module, images: Tensor, description: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Pooled features and patch tokens, batch by batch."""
        like = next(model.parameters())
        for batch in track(images.split(self.batch_size), description):
            with torch.inference_mode():
                yield family_of(model).feature_and_patches(model, batch.to(like))


def _distance(x_BPC: Tensor, y: Tensor) -> float:
    """Between tokens, summed."""
    return (wide(x_BPC) - wide(y)).norm(dim=2).sum().item()


def _ratio(lost: float, by_reference: float) -> float | None:
    return lost / by_reference if by_reference > 0 else None
