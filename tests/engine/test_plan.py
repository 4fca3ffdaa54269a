import numpy as np
import pytest

from engine.plan import (
    global_batches,
    num_steps,
    per_rank_batch_size,
    rank_slice,
    repeat_numbers,
    whole_batches,
)

IDS = np.arange(100, 203)
# 103 samples of three classes, far from even; classes 0, 2 and 4 have none.
LABELS = np.repeat([1, 3, 5], [80, 19, 4])


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


def test_plain_batches_are_the_first_of_one_permutation():
    generator = np.random.default_rng(np.random.SeedSequence([3, 5, 0x5EED]))
    expected = IDS[generator.permutation(103)[:96]].reshape(12, 8)
    assert np.array_equal(global_batches(3, 5, IDS, 8), expected)


def balanced(seed=0, epoch=0, batch_size=16):
    return global_batches(seed, epoch, IDS, batch_size, LABELS)


def times_seen(batches):
    """How often each of IDS comes up."""
    assert np.isin(batches, IDS).all()
    return np.bincount(batches.ravel() - IDS[0], minlength=len(IDS))


@pytest.mark.parametrize("batch_size", [2, 10, 16, 50, 103])
def test_classes_that_occur_fill_equal_shares_of_as_many_batches(batch_size):
    batches = balanced(batch_size=batch_size)
    assert batches.shape == (num_steps(len(IDS), batch_size), batch_size)
    shares = np.bincount(LABELS, weights=times_seen(batches))[[1, 3, 5]]
    assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("epoch", range(4))
def test_samples_of_a_class_come_up_equally_often(epoch):
    seen = times_seen(balanced(epoch=epoch))
    # 96 places, so 32 a class: 32 of 80 samples once, 19 samples once or twice, 4 samples 8 times.
    assert sorted(seen[LABELS == 1]) == [0] * 48 + [1] * 32
    assert sorted(seen[LABELS == 3]) == [1] * 6 + [2] * 13
    assert seen[LABELS == 5].tolist() == [8] * 4


def test_no_sample_of_a_class_waits_longer_than_it_must():
    """What a method learned of it, such as the prediction that SSCL ranks it by, is of then."""
    counts = np.array([times_seen(balanced(epoch=e)) for e in range(12)])
    # 32 of 80 an epoch: all within any three of them.
    waits = np.lib.stride_tricks.sliding_window_view(counts[:, LABELS == 1], 3, axis=0).sum(axis=-1)
    assert waits.min() == 1 and waits.max() == 2


def test_balanced_batches_depend_on_seed_and_epoch_alone():
    batches = balanced(3, 5)
    assert np.array_equal(batches, balanced(3, 5))
    assert not np.array_equal(batches, balanced(3, 6))
    assert not np.array_equal(batches, balanced(4, 5))


def test_over_the_epochs_every_sample_of_a_common_class_and_every_class_has_its_turn():
    counts = np.array([times_seen(balanced(epoch=e, batch_size=50)) for e in range(30)])
    assert (counts.sum(axis=0) > 0).all()
    # 100 places of three classes: the one left over goes to another class in other epochs.
    shares = np.array([np.bincount(LABELS, weights=c)[[1, 3, 5]] for c in counts])
    assert (shares.sum(axis=1) == 100).all() and set(shares.argmax(axis=1)) == {0, 1, 2}


def test_balanced_batches_are_mixed_and_shared_by_ranks():
    batches = balanced()
    slices = [rank_slice(batches, rank, 4) for rank in range(4)]
    assert np.array_equal(np.concatenate(slices, axis=1), batches)
    # Not one class after the other, nor a class's passes in sequence.
    assert all(len(np.unique(LABELS[batch - IDS[0]])) > 1 for batch in batches)
    assert len(np.unique(batches[0])) > 5


def test_a_balanced_epoch_by_hand():
    # Two steps of two: two of the three samples of class 0, and the one of class 2 twice.
    ids, labels = np.array([7, 8, 9, 4]), np.array([0, 0, 2, 0])
    for epoch in range(10):
        drawn = sorted(global_batches(0, epoch, ids, 2, labels).ravel())
        assert drawn in ([4, 7, 9, 9], [4, 8, 9, 9], [7, 8, 9, 9])


def test_repeats_are_numbered_in_the_order_of_the_epoch():
    batches = np.array([[5, 7, 9], [5, 5, 7]])
    assert repeat_numbers(batches).tolist() == [[0, 0, 0], [1, 2, 1]]
    assert not repeat_numbers(global_batches(0, 0, IDS, 8)).any()


def test_fewer_places_than_classes_go_to_classes_in_turn():
    ids = np.arange(3)
    drawn = [global_batches(0, epoch, ids, 2, ids).ravel().tolist() for epoch in range(30)]
    assert all(len(set(pair)) == 2 for pair in drawn) and len({min(p) + max(p) for p in drawn}) == 3


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
