import math

import pytest
import torch
import torch.nn.functional as F
from gradients import assert_gradient
from small_problem import draw

from methods.losses import information_bottleneck, similarity_contrastive

NUM_QUERIES, NUM_PLACES, DIM = 4, 9, 3
QUERIES = F.normalize(draw(NUM_QUERIES, DIM, seed=5).abs(), dim=-1)
KEYS = F.normalize(draw(NUM_PLACES, DIM, seed=6).abs(), dim=-1)
PROBABILITIES = F.softmax(2 * draw(NUM_QUERIES, 4, seed=7), -1)
KEY_PROBABILITIES = F.softmax(2 * draw(NUM_PLACES, 4, seed=8), -1)
OWN = torch.tensor([7, 8, 0, 1])  # as after a wrap
FILLED = torch.ones(NUM_PLACES, dtype=torch.bool)


def similarity(
    queries=QUERIES, keys=KEYS, key_probabilities=KEY_PROBABILITIES, *,
    probabilities=PROBABILITIES, own=OWN, filled=FILLED, threshold=0.3,
):  # fmt: skip
    return similarity_contrastive(
        queries, probabilities, keys, key_probabilities,
        own_index=own, filled=filled, threshold=threshold,
    )  # fmt: skip


def row(i, threshold, filled=FILLED):
    """The formula of one query as a loop, and the number of places that take part."""
    weights, distances = [], []
    for j in range(NUM_PLACES):
        dot = min(max(float(QUERIES[i] @ KEYS[j]), 1e-4), 1 - 1e-4)
        is_own = j == OWN[i]
        confidence = 1.0 if is_own else float(PROBABILITIES[i] @ KEY_PROBABILITIES[j])
        if confidence >= threshold and filled[j]:
            weights.append(confidence)
            distances.append(2 - dot if is_own else 2 + math.log(1 - dot))
    total = sum(w * d for w, d in zip(weights, distances, strict=True))
    return total / sum(weights), len(weights)


# -- similarity contrastive learning ---------------------------------------------------------------


def test_similarity_contrast_of_three_samples_by_hand():
    classes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    losses = similarity(
        torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        classes, probabilities=classes, own=torch.arange(3),
        filled=torch.ones(3, dtype=torch.bool), threshold=0.4,
    )  # fmt: skip
    pair = (2 - 0.8) / 2 + (2 + math.log(1 - 0.6)) / 2
    assert losses.tolist() == pytest.approx([pair, pair, 2 - 0.8])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_similarity_contrast_equals_a_plain_loop(threshold):
    rows = [row(i, threshold) for i in range(NUM_QUERIES)]
    expected = [loss for loss, _ in rows]
    # log(1 - dot) near dot = 1 has fewer digits than float32.
    assert similarity(threshold=threshold).tolist() == pytest.approx(expected, rel=1e-5)
    num_pairs = {num for _, num in rows}
    assert num_pairs == {0.0: {NUM_PLACES}, 1.0: {1}}.get(threshold, num_pairs)
    if threshold == 0.3:  # some take part and some do not
        assert num_pairs - {1, NUM_PLACES}


def test_a_confidence_equal_to_the_threshold_is_enough():
    half = torch.tensor([[0.5, 0.5]])
    arguments = {
        "queries": torch.tensor([[1.0, 0.0]]),
        "keys": torch.tensor([[0.8, 0.6], [0.6, 0.8]]),
        "key_probabilities": half.expand(2, 2),
        "probabilities": half,
        "own": torch.tensor([0]),
        "filled": FILLED[:2],
    }
    alone, both = 2 - 0.8, (1 * (2 - 0.8) + 0.5 * (2 + math.log(1 - 0.6))) / 1.5
    assert similarity(**arguments, threshold=0.5).tolist() == pytest.approx([both])
    assert similarity(**arguments, threshold=0.5001).tolist() == pytest.approx([alone])


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_places_that_hold_nothing_change_nothing(threshold):
    filled = torch.tensor([j in (0, 1, 4, 7, 8) for j in range(NUM_PLACES)])
    expected = [row(i, threshold, filled)[0] for i in range(NUM_QUERIES)]
    assert similarity(filled=filled, threshold=threshold).tolist() == pytest.approx(expected)
    empty = torch.where(filled.unsqueeze(1), KEYS, 0.0)
    nothing = torch.where(filled.unsqueeze(1), KEY_PROBABILITIES, 0.0)
    losses = similarity(keys=empty, key_probabilities=nothing, filled=filled, threshold=threshold)
    assert losses.tolist() == pytest.approx(expected)


def test_the_order_of_the_queue_does_not_matter():
    order = torch.tensor([4, 7, 0, 2, 8, 1, 3, 6, 5])
    filled = torch.arange(NUM_PLACES) != 3
    shuffled = similarity(
        keys=KEYS[order], key_probabilities=KEY_PROBABILITIES[order],
        own=order.argsort()[OWN], filled=filled[order],
    )  # fmt: skip
    torch.testing.assert_close(shuffled, similarity(filled=filled))


def test_weights_of_a_row_sum_to_one():
    """Where all dot products are clamped from below, all distances are 2 - 1e-4."""
    losses = similarity(keys=-KEYS, threshold=0.0)
    torch.testing.assert_close(losses, torch.full((NUM_QUERIES,), 2 - 1e-4), rtol=0, atol=1e-6)


def test_queries_of_ranks_are_rows_of_the_whole():
    parts = [
        similarity(QUERIES[part], probabilities=PROBABILITIES[part], own=OWN[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), similarity())


def test_gradient_of_similarity_contrast():
    assert_gradient(lambda queries: similarity(queries).sum(), 0.7 * QUERIES, step=3e-3)


def test_equal_embeddings_have_a_finite_value_and_no_gradient():
    queries = F.normalize(torch.ones(NUM_QUERIES, DIM), dim=-1).requires_grad_()
    keys = queries.detach()[:1].expand(NUM_PLACES, DIM)
    losses = similarity(queries, keys, threshold=0.0)
    losses.sum().backward()
    # Own pairs at 2 - 1, others at 2 + log 1e-4.
    assert losses.isfinite().all() and (losses > 2 + math.log(1e-4) - 0.01).all()
    assert queries.grad.tolist() == torch.zeros(NUM_QUERIES, DIM).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_similarity_contrast_is_computed_in_single_precision(dtype):
    half, half_keys = QUERIES.to(dtype), KEYS.to(dtype)
    expected = similarity(half.float(), half_keys.float())
    assert torch.equal(similarity(half, half_keys), expected)
    with torch.autocast("cpu", dtype):
        losses = similarity(half.float(), half_keys.float())
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)


# -- information bottleneck ------------------------------------------------------------------------


def test_information_bottleneck_of_three_samples_by_hand():
    queries = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [1.0, 0.0]])
    keys = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [1.0, 0.0]])
    expected = [
        3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2),
        1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2),
        0,
    ]
    assert information_bottleneck(queries, keys).tolist() == pytest.approx(expected, abs=1e-7)


def test_information_bottleneck_equals_torchs_divergence():
    queries, keys = draw(50, 8), draw(50, 8, seed=1)
    # torch's first argument is the distribution that is approximated from.
    expected = F.kl_div(
        F.log_softmax(keys, -1), F.log_softmax(queries, -1), reduction="none", log_target=True
    ).sum(-1)
    divergence = information_bottleneck(queries, keys)
    torch.testing.assert_close(divergence, expected)
    assert (divergence > 0).all()
    assert information_bottleneck(queries, queries).tolist() == [0] * 50


def test_gradient_of_the_information_bottleneck():
    keys = draw(3, 4, seed=1)
    assert_gradient(lambda queries: information_bottleneck(queries, keys).sum(), draw(3, 4))


def test_information_bottleneck_of_half_precision_is_computed_in_single():
    queries, keys = draw(5, 8).bfloat16(), draw(5, 8, seed=1).bfloat16()
    divergence = information_bottleneck(queries, keys)
    assert divergence.dtype == torch.float32
    assert torch.equal(divergence, information_bottleneck(queries.float(), keys.float()))
