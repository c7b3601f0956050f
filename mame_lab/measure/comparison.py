"""Runs merged models and their unmerged twin over the same images and counts what their outputs say.

B batch, C features, K classes; N labelled and M test images, hits_M2 in the top 1 and in the top 5. V views of each
sample, whose probabilities are averaged; V is 1 but for videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.measure.fidelity import Distance, Fidelity, knn_hits
from mame_lab.measure.paired import Change, PairedHits
from mame_lab.measure.proportion import Proportion

NEIGHBOURS = 20

RANKS = ("top1", "top5")

Classifier = Callable[[nn.Module], nn.Module]


class Comparison(LightningModule):
    """Hits, fidelity and, for models without a classifier, features; `trainer.test` fills it.

    Args:
        models: the unmerged one by the name "unmerged", others by names of their own, without dots.
        classifier: gives the module of a model that features enter and logits leave, an identity if it has none.
    """

    def __init__(self, models: dict[str, nn.Module], classifier: Classifier) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.classifier = classifier
        self.has_classifier = not isinstance(classifier(models["unmerged"]), nn.Identity)
        self.fidelity = nn.ModuleDict({name: Fidelity() for name in models if name != "unmerged"})
        evaluate_accuracy = Hits if self.has_classifier else Features
        self.outcomes = nn.ModuleDict({name: evaluate_accuracy() for name in models})

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, labels_B = batch
        views = inputs.unflatten(0, (len(labels_B), -1)).unbind(1)
        logits, features = {}, {}
        for name, model in self.models.items():
            with captured_input(self.classifier(model)) as captured:
                logits[name] = _over_views([model(view) for view in views])
            features[name] = torch.stack(captured).mean(0)
            self.outcomes[name].update((logits if self.has_classifier else features)[name], labels_B)
        for name, fidelity in self.fidelity.items():
            classes = (logits[name], logits["unmerged"]) if self.has_classifier else (None, None)
            fidelity.update(*classes, features[name], features["unmerged"])

    def hits(self) -> dict[str, Tensor]:
        """hits_M2 of each model by its classifier, see `Hits`."""
        return {name: evaluate_accuracy.compute() for name, evaluate_accuracy in self.outcomes.items()}

    def knn_hits(self, bank: Comparison, num_classes: int) -> dict[str, Tensor]:
        """The same by 20-NN among the features that it gave the images of `bank` (by all, if they are fewer)."""
        hits = {}
        for name, features in self.outcomes.items():
            bank_NC, bank_labels_N = bank.outcomes[name].compute()
            k = min(NEIGHBOURS, len(bank_NC))
            hits[name] = knn_hits(bank_NC, bank_labels_N, *features.compute(), num_classes, k=k)
        return hits


class Hits(Metric):
    """hits_M2: of each sample whether the label is the most likely class, and whether one of the five most likely."""

    full_state_update = False
    hits_B2: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits_B2", [], dist_reduce_fx="cat")

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        hits = logits_BK.topk(min(5, logits_BK.shape[1])).indices == labels_B[:, None]
        self.hits_B2.append(torch.stack([hits[:, 0], hits.any(1)], 1))

    def compute(self) -> Tensor:
        return dim_zero_cat(self.hits_B2)


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


def evaluate_accuracy(
    models: dict[str, nn.Module], classifier: Classifier, data: ImageData, trainer: Trainer
) -> tuple[dict[str, Tensor], dict[str, Distance]]:
    """hits_M2 of each model on the test images (see `Hits`), and of all but the unmerged one how far it is from that.

    Args:
        models, classifier: see `Comparison`. Models without a classifier are judged by k-NN among training images.
        data, trainer: the images, and what runs over them.
    """
    tested, bank = Comparison(models, classifier), Comparison(models, classifier)
    if not bank.has_classifier:
        trainer.test(bank, data.bank_dataloader(), verbose=False)
    trainer.test(tested, data.test_dataloader(), verbose=False)
    hits = tested.hits() if tested.has_classifier else tested.knn_hits(bank, len(data.classes))
    return hits, {name: fidelity.compute() for name, fidelity in tested.fidelity.items()}


def hits(models: dict[str, nn.Module], classifier: Classifier, data: ImageData, trainer: Trainer) -> dict[str, Tensor]:
    """hits_M2 of each model by its classifier on the test images; the arguments of `judge`."""
    tested = Comparison(models, classifier)
    trainer.test(tested, data.test_dataloader(), verbose=False)
    return tested.hits()


def check_classes(classifier: nn.Module, classes: list[str]) -> None:
    """Raise MameLabError where a classifier cannot judge the data; a model without one is judged by k-NN."""
    outputs = getattr(classifier, "out_features", None)
    if outputs not in (None, len(classes)):
        raise MameLabError(
            f"the model has {outputs} classes and the dataset {len(classes)}: choose the dataset it was trained for, "
            f"train a head for this one with train.py, or judge its features by k-NN with model.num_classes=0"
        )


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


def accuracy(hits_M2: Tensor) -> dict[str, Proportion]:
    """The shares "top1" and "top5" of the samples."""
    return {name: Proportion(int(hit_M.sum()), len(hit_M)) for name, hit_M in zip(RANKS, hits_M2.T, strict=True)}


def changes(merged_M2: Tensor, unmerged_M2: Tensor) -> dict[str, Change]:
    """By how much these differ between two models on the same samples."""
    columns = zip(RANKS, merged_M2.T.cpu().numpy(), unmerged_M2.T.cpu().numpy(), strict=True)
    return {name: PairedHits.count(merged_M, unmerged_M).change for name, merged_M, unmerged_M in columns}
