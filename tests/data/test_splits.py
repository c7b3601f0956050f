"""`stratified_split`: a partition that holds out the asked share of every class."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mame_lab.data.splits import stratified_split


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_each_class_is_parted_by_the_fraction(labels, fraction, seed):
    rest, held = stratified_split(labels, fraction, seed)
    assert sorted(rest + held) == list(range(len(labels)))
    assert rest == sorted(rest)
    assert held == sorted(held)
    held_counts = Counter(labels[i] for i in held)
    for label, count in Counter(labels).items():
        assert min(1, count - 1) <= held_counts[label] <= max(0, count - 1)
        assert abs(held_counts[label] - fraction * count) <= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides(seed):
    labels = [0, 1] * 50
    assert stratified_split(labels, 0.2, seed) == stratified_split(labels, 0.2, seed)
    assert stratified_split(labels, 0.2, seed) != stratified_split(labels, 0.2, seed + 1)
