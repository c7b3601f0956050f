"""A merged and an unmerged model over the same samples: views of a sample are averaged before anything is judged."""

import pytest
import torch
from torch import nn

from mame_lab.measure.comparison import Comparison, scores
from mame_lab.measure.proportion import Proportion

BATCH, VIEWS, FEATURES, CLASSES = 5, 3, 4, 6


class Recording(nn.Module):
    """Features of clips (B, T, FEATURES), and their classes; it remembers how many clips it was given at a time."""

    def __init__(self, seed, classes=CLASSES):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(FEATURES, classes) if classes else nn.Identity()
        self.given = []
        self.scale = 3

    def forward(self, x_BTC):
        self.given.append(len(x_BTC))
        return self.head(self.scale * x_BTC.mean(1))


def compared(inputs, labels_B, classes=CLASSES):
    comparison = Comparison(
        {"merged": Recording(1, classes), "unmerged": Recording(2, classes)}, lambda model: model.head, CLASSES
    )
    comparison.test_step((inputs, labels_B))
    return comparison


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x_BVTC = 5 * torch.randn(BATCH, VIEWS, 2, FEATURES, generator=generator)
    return x_BVTC, torch.randint(CLASSES, (BATCH,), generator=generator)


@torch.no_grad()
def test_the_probabilities_of_the_views_are_averaged(batch):
    x_BVTC, labels_B = batch
    comparison = compared(x_BVTC.flatten(0, 1), labels_B)
    probabilities = {
        name: torch.stack([model(x_BVTC[:, view]).softmax(1) for view in range(VIEWS)]).mean(0)
        for name, model in comparison.models.items()
    }
    for name, mean_BK in probabilities.items():
        hit_B = mean_BK.argmax(1) == labels_B
        assert torch.equal(comparison.outcomes()[name]["top1"], hit_B)
        assert scores(comparison.outcomes()[name])["top1"] == Proportion(int(hit_B.sum()), BATCH)
    merged_BK, unmerged_BK = probabilities["merged"], probabilities["unmerged"]
    found = comparison.fidelity["merged"].compute()
    assert found.agreement == (int((merged_BK.argmax(1) == unmerged_BK.argmax(1)).sum()), BATCH)
    kl = (unmerged_BK * (unmerged_BK / merged_BK).log()).sum(1).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-4)
    assert comparison.models["merged"].given[:VIEWS] == [BATCH] * VIEWS


def test_a_view_that_excludes_a_class_leaves_it_possible():
    x_BVTC = torch.full((1, 2, 1, FEATURES), 1e3)
    x_BVTC[:, 1] = 0
    assert compared(x_BVTC.flatten(0, 1), torch.zeros(1, dtype=torch.long)).fidelity["merged"].compute().kl < 1e4


@torch.no_grad()
def test_the_calibration_error_is_of_the_probabilities(batch):
    """Also where all logits could be taken for probabilities; one bin of confidence holds all samples."""
    x_BVTC, labels_B = batch
    comparison = Comparison({"unmerged": Recording(2)}, lambda model: model.head, CLASSES)
    comparison.models["unmerged"].head.bias.zero_()
    comparison.test_step((x_BVTC[:, 0] * 0, labels_B))
    found = scores(comparison.outcomes()["unmerged"])
    assert found["ece"] == pytest.approx(abs(1 / CLASSES - found["top1"].value))


@torch.no_grad()
def test_the_features_of_the_views_are_averaged(batch):
    x_BVTC, labels_B = batch
    comparison = compared(x_BVTC.flatten(0, 1), labels_B, classes=0)
    features_BC, same_B = comparison.measured["merged"].compute()
    torch.testing.assert_close(features_BC, 3 * x_BVTC.mean((1, 2)))
    assert torch.equal(same_B, labels_B)


@torch.no_grad()
def test_a_single_view_is_left_as_it_is(batch):
    x_BVTC, labels_B = batch
    comparison = compared(x_BVTC[:, 0], labels_B)
    assert comparison.models["merged"].given == [BATCH]
    logits_BK = comparison.models["merged"](x_BVTC[:, 0])
    assert torch.equal(comparison.outcomes()["merged"]["top1"], logits_BK.argmax(1) == labels_B)


@torch.no_grad()
def test_each_model_is_compared_with_the_unmerged_one(batch):
    x_BVTC, labels_B = batch
    models = {"same": Recording(2), "unmerged": Recording(2), "other": Recording(1), "far": Recording(1)}
    models["far"].scale = 6
    comparison = Comparison(models, lambda model: model.head, CLASSES)
    comparison.test_step((x_BVTC[:, 0], labels_B))
    distances = {name: fidelity.compute() for name, fidelity in comparison.fidelity.items()}
    assert list(distances) == ["same", "other", "far"]
    assert distances["same"] == ((BATCH, BATCH), 0, 0)
    assert distances["other"] == compared(x_BVTC[:, 0], labels_B).fidelity["merged"].compute()
    assert distances["other"].kl > 0
    features_BC = 3 * x_BVTC[:, 0].mean(1)
    spread = (features_BC - features_BC.mean(0)).norm(dim=1).mean()
    assert distances["far"].feature_error == pytest.approx(float(features_BC.norm(dim=1).mean() / spread))
