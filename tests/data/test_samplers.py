"""Batches are a function of seed and epoch, shared out over processes with nothing twice and nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mame_lab.data import samplers
from mame_lab.data.samplers import EvaluationBatches, TrainingBatches, seed_of
from mame_lab.errors import MameLabError

COUNTS, SIZES, PROCESSES = st.integers(1, 60), st.integers(1, 12), st.integers(1, 5)


def of_all(processes, make):
    """The batches of each process."""
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(processes):
            patch.setattr(samplers, "_processes", lambda rank=rank: (rank, processes))
            batches = make()
            found = list(batches)
            assert len(batches) == len(found)
            yield found


def training(count, size, seed=0, epoch=0, done=0):
    return TrainingBatches(count, size, seed, lambda: (epoch, done))


@given(COUNTS, SIZES, PROCESSES)
def test_evaluation_sees_every_image_once_in_as_many_batches(count, size, processes):
    try:
        found = list(of_all(processes, lambda: EvaluationBatches(count, size)))
    except MameLabError as error:
        assert f"dataset.batch_size={size}" in str(error)  # noqa: PT017
        assert processes > 1
        assert size == 1 or count < processes
        return
    assert sorted(index for batches in found for batch in batches for index in batch) == list(range(count))
    assert len({len(batches) for batches in found}) == 1
    assert all(1 <= len(batch) <= size for batches in found for batch in batches)


def test_one_process_evaluates_in_order_in_full_batches():
    assert list(EvaluationBatches(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]]


@given(COUNTS, st.integers(1, 4), st.sampled_from([1, 2, 3]))
def test_processes_share_the_batches_of_one_process(count, size, processes):
    if count < processes * size:
        return
    (alone,) = of_all(1, lambda: training(count, size * processes))
    shared = list(of_all(processes, lambda: training(count, size)))
    for batch, *parts in zip(alone, *shared, strict=True):
        assert len({len(part) for part in parts}) == 1
        together = [item for part in parts for item in part]
        assert set(together) <= set(batch)
        assert len(set(together)) == len(together) == len(batch) - len(batch) % processes


@given(st.integers(2, 60), SIZES, st.integers(0, 3), st.data())
def test_what_is_left_of_an_epoch_is_its_end(count, size, epoch, data):
    whole = list(training(count, size, epoch=epoch))
    done = data.draw(st.integers(0, len(whole)))
    rest = list(TrainingBatches(count, size, 0, lambda: (epoch, done)))
    assert rest == whole[done % len(whole) :]


def test_every_epoch_and_seed_has_its_own_order_and_augmentation():
    found = {str(list(training(40, 8, seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(found) == 9
    assert str(list(training(40, 8, 1, 2))) in found
    items = [item for epoch in range(3) for batch in training(40, 8, 0, epoch) for item in batch]
    assert len({seed for _, seed in items}) == len(items) == 120
    assert len({seed_of(a, b) for a in range(9) for b in range(9)}) == 81


@pytest.mark.parametrize(("count", "size", "seen"), [(10, 4, 8), (10, 5, 10), (10, 6, 10), (10, 10, 10), (10, 20, 10)])
def test_a_short_batch_is_dropped_only_beside_two_full_ones(count, size, seen):
    assert sum(map(len, training(count, size))) == seen


def test_too_few_training_images_for_the_processes():
    with pytest.raises(MameLabError, match="1 training images are too few for 2 processes"):
        list(of_all(2, lambda: training(1, 4)))
