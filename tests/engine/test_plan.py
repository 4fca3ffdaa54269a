import numpy as np
import pytest

from engine.plan import (
    global_batches,
    num_steps,
    per_rank_batch_size,
    rank_slice,
    whole_batches,
)

IDS = np.arange(100, 203)


def test_each_sample_is_in_at_most_one_batch_and_only_a_remainder_is_left_out():
    batches = global_batches(0, 0, IDS, 16)
    assert batches.shape == (num_steps(len(IDS), 16), 16) == (6, 16)
    assert len(np.unique(batches)) == batches.size
    assert np.isin(batches, IDS).all()


def test_order_depends_on_seed_and_epoch_alone():
    batches = global_batches(3, 5, IDS, 8)
    assert np.array_equal(batches, global_batches(3, 5, IDS, 8))
    assert not np.array_equal(batches, global_batches(3, 6, IDS, 8))
    assert not np.array_equal(batches, global_batches(4, 5, IDS, 8))
    # Neither swapping seed and epoch nor adding them up gives the same order.
    assert not np.array_equal(batches, global_batches(5, 3, IDS, 8))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_slices_of_all_ranks_make_up_the_global_batch_in_order(num_ranks):
    batches = global_batches(0, 1, IDS, 16)
    slices = [rank_slice(batches, rank, num_ranks) for rank in range(num_ranks)]
    assert np.array_equal(np.concatenate(slices, axis=1), batches)


def test_going_on_at_a_step_gives_the_remaining_batches():
    whole = rank_slice(global_batches(0, 2, IDS, 16), 1, 2)
    rest = rank_slice(global_batches(0, 2, IDS, 16)[4:], 1, 2)
    assert np.array_equal(rest, whole[4:])


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_evaluation_covers_each_sample_once_in_the_same_company(num_ranks):
    dealt = [whole_batches(IDS, 10, rank, num_ranks) for rank in range(num_ranks)]
    alone = {tuple(batch) for batch in whole_batches(IDS, 10, 0, 1)}
    assert {tuple(batch) for batches in dealt for batch in batches} == alone
    assert sorted(i for batches in dealt for batch in batches for i in batch) == IDS.tolist()


def test_more_ranks_than_batches_leaves_some_without():
    assert whole_batches(IDS[:5], 10, 1, 2) == []
    assert [b.tolist() for b in whole_batches(IDS[:0], 10, 0, 1)] == []


@pytest.mark.parametrize(
    ("batch_size", "num_ranks", "nearest"), [(10, 4, "8 or 12"), (4, 4, "8"), (7, 2, "6 or 8")]
)
def test_an_indivisible_batch_names_the_nearest_sizes(batch_size, num_ranks, nearest):
    with pytest.raises(ValueError, match=f"optim.batch_size: {batch_size} .*possible: {nearest}$"):
        per_rank_batch_size(batch_size, num_ranks)


def test_fewer_samples_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="at most 12"):
        num_steps(12, 16)
