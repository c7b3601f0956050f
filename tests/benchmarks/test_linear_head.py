"""A linear head on frozen features, and what merging changes of its hits."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mame_lab.benchmarks.frontier.linear_head import LinearHead
from mame_lab.measure.paired import PairedHits


def features(count, seed):
    """Of 3 classes that lie apart in 2 of 5 channels."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(count) % 3
    feature_NC = torch.randn(count, 5, generator=generator)
    feature_NC[:, :2] += 4 * torch.tensor([[0.0, 0.0], [1, 0], [0, 1]])[label_N]
    return feature_NC, label_N


def test_the_head_is_fitted_on_training_features_and_counts_pairs():
    test_MC, label_M = features(30, 1)
    head = LinearHead(*features(90, 0), test_MC, label_M)
    same = head(test_MC)
    assert (same.gained, same.lost, same.total) == (0, 0, 30)
    assert same.unmerged > 0.8
    moved_MC = test_MC.clone()
    moved_MC[:6, :2] = moved_MC[[1, 2, 0, 4, 5, 3], :2]  # Six samples look like ones of another class.
    assert head(moved_MC).lost >= 5
    assert head(moved_MC).unmerged == same.unmerged


def test_pairs_are_counted():
    merged, unmerged = np.array([[1, 1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0, 0]], dtype=bool)
    pairs = PairedHits.count(merged, unmerged)
    assert pairs == PairedHits(both=2, gained=2, lost=1, total=7)
    assert (pairs.merged, pairs.unmerged, pairs.difference) == pytest.approx((4 / 7, 3 / 7, 1 / 7))


def test_a_case_by_hand():
    """Of 8 samples that one alone hits, merged hits 1: p = 2 (1 + 8) / 2^8."""
    pairs = PairedHits(both=30, gained=1, lost=7, total=50)
    assert pairs.difference == pytest.approx(-0.12)
    assert pairs.p == pytest.approx(18 / 256)
    low, high = pairs.interval
    shares = [(end * 50 / 8 + 1) / 2 for end in (low, high)]
    assert [binom.sf(0, 8, shares[0]), binom.cdf(1, 8, shares[1])] == pytest.approx([0.025, 0.025])


def test_without_a_difference_there_is_none():
    pairs = PairedHits(both=5, gained=0, lost=0, total=9)
    assert (pairs.difference, pairs.interval, pairs.p) == (0, (0, 0), 1)


def test_the_interval_leaves_out_zero_where_the_test_does():
    for gained in range(12):
        pairs = PairedHits(both=3, gained=gained, lost=11 - gained, total=20)
        low, high = pairs.interval
        assert low <= pairs.difference <= high
        assert (not low <= 0 <= high) == (pairs.p < 0.05)
