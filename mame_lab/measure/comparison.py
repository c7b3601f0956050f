"""Runs models and the unmerged one over the same samples and measures what their outputs say.

B batch, C features, K classes; M samples. V views of each sample, whose probabilities are averaged; V is 1 but for
videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MetricCollection

from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.measure.fidelity import Distance, Fidelity, knn_hits
from mame_lab.measure.hits import Features
from mame_lab.measure.metrics import METRICS
from mame_lab.measure.paired import Change, PairedHits
from mame_lab.measure.proportion import Proportion

NEIGHBOURS = 20

Classifier = Callable[[nn.Module], nn.Module]
Outcome = Mapping[str, Tensor]  # what each of METRICS, or of those that k-NN gives, computed


class Comparison(LightningModule):
    """Metrics, fidelity and, for models without a classifier, features; `trainer.test` fills it.

    Args:
        models: the unmerged one by the name "unmerged", others by names of their own, without dots.
        classifier: gives the module of a model that turns features into logits, an identity if it has none.
        num_classes: of the samples.
    """

    def __init__(self, models: dict[str, nn.Module], classifier: Classifier, num_classes: int) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.classifier, self.num_classes = classifier, num_classes
        self.has_classifier = not isinstance(classifier(models["unmerged"]), nn.Identity)
        self.fidelity = nn.ModuleDict({name: Fidelity() for name in models if name != "unmerged"})
        self.measured = nn.ModuleDict({name: self._metrics() if self.has_classifier else Features() for name in models})

    def _metrics(self) -> MetricCollection:
        metrics: Any = {name: metric.make(self.num_classes) for name, metric in METRICS.items()}
        return MetricCollection(metrics, compute_groups=False)  # which would take metrics for one that agree by chance

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, labels_B = batch
        views = inputs.unflatten(0, (len(labels_B), -1)).unbind(1)
        logits, features = {}, {}
        for name, model in self.models.items():
            with captured_input(self.classifier(model)) as captured:
                logits[name] = _over_views([model(view) for view in views])
            features[name] = torch.stack(captured).mean(0)
            self.measured[name].update((logits if self.has_classifier else features)[name], labels_B)
        for name, fidelity in self.fidelity.items():
            classes = (logits[name], logits["unmerged"]) if self.has_classifier else (None, None)
            fidelity.update(*classes, features[name], features["unmerged"])

    def outcomes(self) -> dict[str, Outcome]:
        """Of each model, by its classifier."""
        return {name: metrics.compute() for name, metrics in self.measured.items()}

    def knn_outcomes(self, bank: Comparison) -> dict[str, Outcome]:
        """Of each model, by 20-NN among the features that it gave the images of `bank` (by all, if they are fewer)."""
        outcomes = {}
        for name, features in self.measured.items():
            bank_NC, bank_labels_N = bank.measured[name].compute()
            k = min(NEIGHBOURS, len(bank_NC))
            hits_M2 = knn_hits(bank_NC, bank_labels_N, *features.compute(), self.num_classes, k=k)
            outcomes[name] = dict(zip(("top1", "top5"), hits_M2.T, strict=True))
        return outcomes


def compare(
    models: dict[str, nn.Module], classifier: Classifier, data: ImageData, trainer: Trainer
) -> tuple[dict[str, Outcome], dict[str, Distance]]:
    """What each model gets right of the test images, and of all but the unmerged one how far it is from that.

    Args:
        models, classifier: see `Comparison`. Models without a classifier are measured by k-NN among training images.
        data, trainer: the images, and what runs over them.
    """
    tested, bank = (Comparison(models, classifier, len(data.classes)) for _ in range(2))
    if not bank.has_classifier:
        trainer.test(bank, data.bank_dataloader(), verbose=False)
    trainer.test(tested, data.test_dataloader(), verbose=False)
    outcomes = tested.outcomes() if tested.has_classifier else tested.knn_outcomes(bank)
    return outcomes, {name: fidelity.compute() for name, fidelity in tested.fidelity.items()}


def outcomes(
    models: dict[str, nn.Module], classifier: Classifier, data: ImageData, trainer: Trainer
) -> dict[str, Outcome]:
    """What each model gets right of the test images by its classifier; the arguments of `compare`."""
    tested = Comparison(models, classifier, len(data.classes))
    trainer.test(tested, data.test_dataloader(), verbose=False)
    return tested.outcomes()


def check_classes(classifier: nn.Module, classes: list[str]) -> None:
    """Raise MameLabError where a classifier is for other classes than the data's; one without is measured by k-NN."""
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


def scores(outcome: Outcome) -> dict[str, Proportion | float]:
    """The numbers of one model, for its `ModelMeasurement`."""
    return {name: share(x) if x.dtype == torch.bool else float(x) for name, x in outcome.items()}


def share(hits_M: Tensor) -> Proportion:
    return Proportion(int(hits_M.sum()), len(hits_M))


def changes(merged: Outcome, unmerged: Outcome) -> dict[str, Change]:
    """By how much the shares of the samples differ between two models."""
    pairs = {name: (x_M.cpu().numpy(), unmerged[name].cpu().numpy()) for name, x_M in merged.items()}
    return {name: PairedHits.count(*pair).change for name, pair in pairs.items() if pair[0].dtype == bool}
