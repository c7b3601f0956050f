"""Runs a merged model and its unmerged twin over the same images and counts what their outputs say.

B batch, C features, K classes; N labelled and M test images. V views of each sample, whose probabilities are averaged;
V is 1 but for videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mame_lab.fidelity import Fidelity, knn_accuracy
from mame_lab.results import Proportion

NEIGHBOURS = 20

Accuracy = dict[str, Proportion]  # "top1" and "top5"


class Comparison(LightningModule):
    """Hits, fidelity and, for models without a classifier, features; `trainer.test` fills it.

    Args:
        models: by the names "merged" and "unmerged".
        classifier: gives the module of a model that features enter and logits leave, an identity if it has none.
    """

    def __init__(self, models: dict[str, nn.Module], classifier: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.classifier = classifier
        self.has_classifier = not isinstance(classifier(models["merged"]), nn.Identity)
        self.fidelity = Fidelity()
        judge = Hits if self.has_classifier else Features
        self.judges = nn.ModuleDict({name: judge() for name in models})

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, labels_B = batch
        views = inputs.unflatten(0, (len(labels_B), -1)).unbind(1)
        logits, features = {}, {}
        for name, model in self.models.items():
            with captured_input(self.classifier(model)) as captured:
                logits[name] = _over_views([model(view) for view in views])
            features[name] = torch.stack(captured).mean(0)
            self.judges[name].update((logits if self.has_classifier else features)[name], labels_B)
        classes = (logits["merged"], logits["unmerged"]) if self.has_classifier else (None, None)
        self.fidelity.update(*classes, features["merged"], features["unmerged"])

    def accuracy(self) -> dict[str, Accuracy]:
        """Of each model, by its classifier."""
        return {name: _accuracy(*hits.compute()) for name, hits in self.judges.items()}

    def knn_accuracy(self, bank: Comparison, num_classes: int) -> dict[str, Accuracy]:
        """Of each model, by 20-NN among the features that it gave the images of `bank` (by all, if they are fewer)."""
        accuracy = {}
        for name, features in self.judges.items():
            bank_NC, bank_labels_N = bank.judges[name].compute()
            k = min(NEIGHBOURS, len(bank_NC))
            accuracy[name] = _accuracy(*knn_accuracy(bank_NC, bank_labels_N, *features.compute(), num_classes, k=k))
        return accuracy


class Hits(Metric):
    """Top-1 hits, top-5 hits and samples, as integers: in half precision floats would lose count."""

    full_state_update = False
    counts_3: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts_3", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        hits = (logits_BK.topk(min(5, logits_BK.shape[1])).indices == labels_B[:, None]).sum(0)
        self.counts_3 += torch.stack([hits[0], hits.sum(), hits.new_tensor(len(labels_B))])

    def compute(self) -> tuple[int, ...]:
        return tuple(self.counts_3.tolist())


class Features(Metric):
    """All features (N, C) and their labels (N,)."""

    full_state_update = False
    features_BC: list[Tensor]
    labels_B: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features_BC", [], dist_reduce_fx="cat")
        self.add_state("labels_B", [], dist_reduce_fx="cat")

    def update(self, features_BC: Tensor, labels_B: Tensor) -> None:
        self.features_BC.append(features_BC)
        self.labels_B.append(labels_B)

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.features_BC), dim_zero_cat(self.labels_B)


@contextmanager
def captured_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the first argument of every call of the module."""
    captured: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))
    try:
        yield captured
    finally:
        hook.remove()


def _over_views(logits_VBK: list[Tensor]) -> Tensor:
    """Logits of the mean probabilities."""
    if len(logits_VBK) == 1:
        return logits_VBK[0]
    return torch.stack(logits_VBK).float().log_softmax(-1).logsumexp(0)


def _accuracy(top1: int, top5: int, total: int) -> Accuracy:
    return {"top1": Proportion(top1, total), "top5": Proportion(top5, total)}
