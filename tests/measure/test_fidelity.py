import math

import pytest
import torch
from torchmetrics.utilities import dim_zero_cat

from mame_lab.errors import MameLabError
from mame_lab.measure import fidelity
from mame_lab.measure.fidelity import Distance, Fidelity, knn_hits


def outputs(samples=12, noise=0.5, seed=0, classes=4, channels=6):
    """Logits and features of a merged and an unmerged model, in the order of `Fidelity.update`."""
    generator = torch.Generator().manual_seed(seed)
    logits_BK, feature_BC = (torch.randn(samples, n, generator=generator) for n in (classes, channels))
    return tuple(
        x + shift * torch.randn(x.shape, generator=generator) for x in (logits_BK, feature_BC) for shift in (noise, 0)
    )


def measured(*batches):
    metric = Fidelity()
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def naive(merged_BK, unmerged_BK, merged_BC, unmerged_BC):
    """The definitions, sample by sample."""
    n = len(merged_BK)
    agree = sum(int(m.argmax() == u.argmax()) for m, u in zip(merged_BK, unmerged_BK, strict=True))
    kl = 0.0
    for m, u in zip(merged_BK.double(), unmerged_BK.double(), strict=True):
        q, p = m.softmax(0), u.softmax(0)
        kl += sum(float(p[i] * math.log(p[i] / q[i])) for i in range(len(p))) / n
    centre = sum(unmerged_BC.double()) / n
    shift = sum(float((m - u).norm()) for m, u in zip(merged_BC.double(), unmerged_BC.double(), strict=True))
    spread = sum(float((u - centre).norm()) for u in unmerged_BC.double())
    return Distance((agree, n), pytest.approx(kl, rel=1e-5), pytest.approx(shift / spread, rel=1e-5))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.01, 0.5, 2.0])
def test_agrees_with_the_definitions(seed, noise):
    batch = outputs(noise=noise, seed=seed)
    assert measured(batch) == naive(*batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("samples", [1, 9])
def test_equal_outputs_have_no_distance_at_all(dtype, samples):
    batch = [x.to(dtype) for x in outputs(samples, noise=0)]
    assert measured(batch) == Distance((samples, samples), 0.0, 0.0)


def test_tiny_distances_are_not_lost_in_rounding():
    logits_BK, feature_BC = (torch.randn(5, n, dtype=torch.float64) for n in (4, 6))
    nudge_BK = 1e-6 * torch.randn(5, 4, dtype=torch.float64)
    distance = measured((logits_BK + nudge_BK, logits_BK, feature_BC + 1e-12, feature_BC))
    assert 0 < distance.kl < 1e-11
    assert 0 < distance.feature_error < 1e-11


def test_the_split_into_batches_does_not_matter():
    whole = outputs(11)
    parts = zip(*(x.split(4) for x in whole), strict=True)
    expected = measured(whole)
    assert measured(*parts) == (expected.agreement, pytest.approx(expected.kl), pytest.approx(expected.feature_error))


def test_processes_are_gathered():
    whole = outputs(11)
    here, there = Fidelity(), Fidelity()
    for metric, span in ((here, slice(0, 2)), (here, slice(2, 4)), (there, slice(4, 11))):
        metric.update(*(x[span] for x in whole))
    others = iter([dim_zero_cat(state) for state in there.metric_state.values()])
    here.dist_sync_fn = lambda x, group: [x, next(others)]
    here.distributed_available_fn = lambda: True
    expected = measured(whole)
    assert here.compute() == (
        expected.agreement,
        pytest.approx(expected.kl),
        pytest.approx(expected.feature_error),
    )


def test_without_a_classifier_the_features_are_compared():
    _, _, merged_BC, unmerged_BC = batch = outputs()
    assert measured((None, None, merged_BC, unmerged_BC)) == Distance(None, None, measured(batch).feature_error)


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.1, 5.0)])
def test_feature_error_has_no_unit_and_no_origin(scale, shift):
    batch = outputs()
    moved = [*batch[:2], *(scale * x + shift for x in batch[2:])]
    assert measured(moved).feature_error == pytest.approx(measured(batch).feature_error, rel=1e-4)


def test_the_mean_feature_is_an_error_of_one():
    _, _, _, unmerged_BC = outputs()
    mean_BC = unmerged_BC.double().mean(0).expand(len(unmerged_BC), -1)
    assert measured((None, None, mean_BC, unmerged_BC)).feature_error == pytest.approx(1, rel=1e-6)


def labelled(seed, bank=60, queries=17, classes=7, channels=5):
    generator = torch.Generator().manual_seed(seed)
    centre_KC = torch.randn(classes, channels, generator=generator)
    label_N, label_M = (torch.randint(classes, (n,), generator=generator) for n in (bank, queries))
    bank_NC, query_MC = (
        centre_KC[labels] + torch.randn(len(labels), channels, generator=generator) for labels in (label_N, label_M)
    )
    return bank_NC, label_N, query_MC, label_M, classes


def naive_knn(bank_NC, label_N, query_MC, label_M, classes, k, temperature):
    top1 = top5 = 0
    for query_C, label in zip(query_MC.double(), label_M.tolist(), strict=True):
        similarity = torch.cosine_similarity(query_C[None], bank_NC.double()).tolist()
        votes = dict.fromkeys(range(classes), 0.0)
        for i in sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]:
            votes[int(label_N[i])] += math.exp(similarity[i] / temperature)
        ranked = sorted((c for c in votes if votes[c] > 0), key=lambda c: -votes[c])
        top1 += ranked[0] == label
        top5 += label in ranked[:5]
    return top1, top5, len(query_MC)


def knn_accuracy(*data, **options) -> tuple[int, int, int]:
    hits_M2 = knn_hits(*data, **options)
    return *hits_M2.sum(0).tolist(), len(hits_M2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (9, 0.07), (20, 0.07), (20, 1.0), (60, 0.2)])
def test_knn_agrees_with_a_loop(monkeypatch, seed, k, temperature):
    monkeypatch.setattr(fidelity, "QUERY_CHUNK", 4)
    data = labelled(seed)
    assert knn_accuracy(*data, k=k, temperature=temperature) == naive_knn(*data, k, temperature)


def test_knn_defaults_are_dinos():
    data = labelled(0, bank=200, queries=300)
    assert knn_accuracy(*data) == naive_knn(*data, k=20, temperature=0.07)


def test_knn_ignores_length_and_survives_low_temperatures():
    bank_NC, label_N, query_MC, label_M, classes = data = labelled(0)
    assert knn_accuracy(100 * bank_NC, label_N, 0.01 * query_MC, label_M, classes) == knn_accuracy(*data)
    nearest = knn_accuracy(*data, k=1)
    assert knn_accuracy(*data, temperature=1e-4)[0] == nearest[0]


def test_a_class_without_a_vote_is_no_top5_hit():
    bank_NC = torch.ones(3, 2)
    label_N, label_M = torch.zeros(3, dtype=torch.long), torch.ones(2, dtype=torch.long)
    assert knn_accuracy(bank_NC, label_N, torch.ones(2, 2), label_M, num_classes=3, k=3) == (0, 0, 2)


def test_a_bank_smaller_than_k_is_an_error():
    with pytest.raises(MameLabError, match="k=20 has only 19 labelled samples"):
        knn_accuracy(*labelled(0, bank=19))
