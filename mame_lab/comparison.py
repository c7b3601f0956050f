"""Runs a merged model and its unmerged twin over the same images and counts what their outputs say.

B batch, C features, K classes; N labelled and M test images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import CatMetric, SumMetric

from mame_lab.fidelity import Fidelity, knn_accuracy
from mame_lab.results import Proportion


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
        self.samples = SumMetric()
        self.hits = nn.ModuleDict({name: nn.ModuleDict({k: SumMetric() for k in ("top1", "top5")}) for name in models})
        self.features = nn.ModuleDict({name: CatMetric() for name in models})
        self.labels = CatMetric()

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, labels_B = batch
        logits, features = {}, {}
        for name, model in self.models.items():
            with captured_input(self.classifier(model)) as captured:
                logits[name] = model(inputs)
            features[name] = captured[0]
        self.samples.update(len(labels_B))
        if self.has_classifier:
            for name, hits in self.hits.items():
                for k, metric in hits.items():
                    metric.update(_hits(logits[name], labels_B, int(k.removeprefix("top"))))
            self.fidelity.update(logits["merged"], logits["unmerged"], features["merged"], features["unmerged"])
        else:
            for name, metric in self.features.items():
                metric.update(features[name])
            self.labels.update(labels_B)
            self.fidelity.update(None, None, features["merged"], features["unmerged"])

    def accuracy(self) -> dict[str, dict[str, Proportion]]:
        """Top-1 and top-5 of each model, by its classifier."""
        total = int(self.samples.compute())
        return {
            name: {k: Proportion(int(metric.compute()), total) for k, metric in hits.items()}
            for name, hits in self.hits.items()
        }

    def knn_accuracy(self, bank: Comparison, num_classes: int) -> dict[str, dict[str, Proportion]]:
        """Top-1 and top-5 of each model, by k-NN among the features that it gave the images of `bank`."""
        bank_labels_N, labels_M = bank.labels.compute().long(), self.labels.compute().long()
        accuracy = {}
        for name, features in self.features.items():
            bank_NC, query_MC = bank.features[name].compute(), features.compute()
            top1, top5, total = knn_accuracy(bank_NC, bank_labels_N, query_MC, labels_M, num_classes)
            accuracy[name] = {"top1": Proportion(top1, total), "top5": Proportion(top5, total)}
        return accuracy


@contextmanager
def captured_input(module: nn.Module):
    """A list that receives the first argument of every call of the module."""
    captured: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))
    try:
        yield captured
    finally:
        hook.remove()


def _hits(logits_BK: Tensor, labels_B: Tensor, k: int) -> Tensor:
    best_Bk = logits_BK.topk(min(k, logits_BK.shape[1])).indices
    return (best_Bk == labels_B[:, None]).sum()
