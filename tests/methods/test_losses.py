import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import assert_gradient

from methods.losses import (
    entropy,
    prior_divergence,
    sharpen,
    soft_cross_entropy,
    squared_error,
    supervised_contrastive,
)

PER_SAMPLE = [soft_cross_entropy, squared_error]


def random_logits(num_rows=6, num_classes=4, seed=0):
    return torch.randn(num_rows, num_classes, generator=torch.Generator().manual_seed(seed)) * 2


def random_targets(num_rows=6, num_classes=4, seed=1):
    return F.softmax(random_logits(num_rows, num_classes, seed), dim=-1)


def softmax(logits):
    """Written out in float64, apart from torch's."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


# -- losses of each sample -------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(1.0, 0.0), (0.25, 0.75)])
def test_cross_entropy_by_hand(target):
    loss = soft_cross_entropy(torch.zeros(1, 2), torch.tensor([target]))
    assert loss.tolist() == pytest.approx([math.log(2)])


def test_squared_error_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Probabilities (1/2, 1/2) and (3/4, 1/4).
    assert squared_error(logits, targets).tolist() == pytest.approx([0.5, 2 * 0.75**2])


def test_per_sample_losses_equal_their_formulas():
    logits, targets = random_logits(), random_targets()
    probabilities, t = softmax(logits.double().numpy()), targets.double().numpy()
    expected = {
        soft_cross_entropy: -(t * np.log(probabilities)).sum(-1),
        squared_error: ((probabilities - t) ** 2).sum(-1),
    }
    for loss, values in expected.items():
        np.testing.assert_allclose(loss(logits, targets).numpy(), values, rtol=1e-5)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    torch.testing.assert_close(
        soft_cross_entropy(logits, F.one_hot(labels, 4)),
        F.cross_entropy(logits, labels, reduction="none"),
    )


@pytest.mark.parametrize("loss", PER_SAMPLE)
def test_gradients_of_per_sample_losses(loss):
    targets = random_targets(3)
    assert_gradient(lambda logits: loss(logits, targets).sum(), random_logits(3))


def test_cross_entropy_gradient_is_probability_minus_target():
    logits, targets = random_logits().requires_grad_(), random_targets()
    soft_cross_entropy(logits, targets).sum().backward()
    torch.testing.assert_close(logits.grad, F.softmax(logits.detach(), -1) - targets)


@pytest.mark.parametrize(
    ("loss", "right", "wrong"), [(soft_cross_entropy, 0.0, 2e4), (squared_error, 0.0, 2.0)]
)
def test_per_sample_losses_at_probabilities_of_zero_and_one(loss, right, wrong):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    losses = loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert losses.tolist() == [right, wrong]
    losses.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", PER_SAMPLE)
def test_per_sample_losses_of_one_class_and_of_one_sample(loss):
    assert loss(torch.tensor([[3.0], [-2.0]]), torch.ones(2, 1)).tolist() == [0, 0]
    logits, targets = random_logits(), random_targets()
    torch.testing.assert_close(loss(logits[:1], targets[:1]), loss(logits, targets)[:1])
    assert loss(logits[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("loss", PER_SAMPLE)
def test_per_sample_losses_of_half_precision_are_computed_in_single(loss):
    logits, targets = random_logits().bfloat16(), random_targets().bfloat16()
    losses = loss(logits, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, loss(logits.float(), targets.float()))


# -- probabilities ---------------------------------------------------------------------------------


def test_entropy_of_known_distributions():
    probabilities = torch.tensor([[[1.0, 0, 0, 0], [0.25] * 4], [[0.5, 0.5, 0, 0], [0, 0, 0, 1.0]]])
    expected = torch.tensor([[0, math.log(4)], [math.log(2), 0]])
    torch.testing.assert_close(entropy(probabilities), expected)
    assert entropy(torch.ones(1, 1)).tolist() == [0]


def test_entropy_equals_its_formula_also_for_half_precision():
    probabilities = random_targets()
    p = probabilities.double().numpy()
    np.testing.assert_allclose(entropy(probabilities).numpy(), -(p * np.log(p)).sum(-1), rtol=1e-5)
    half = probabilities.bfloat16()
    assert entropy(half).dtype == torch.float32
    assert torch.equal(entropy(half), entropy(half.float()))


def test_gradient_of_entropy():
    assert_gradient(lambda p: entropy(p).sum(), torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]))


def test_sharpening_by_hand():
    sharpened = sharpen(torch.tensor([0.8, 0.2]), 0.5)
    assert sharpened.tolist() == pytest.approx([0.64 / 0.68, 0.04 / 0.68])


def test_sharpening_keeps_distributions_and_their_order():
    probabilities = random_targets(50, 5)
    torch.testing.assert_close(sharpen(probabilities, 1.0), probabilities)
    p = probabilities.double().numpy() ** (1 / 0.3)
    sharpened = sharpen(probabilities, 0.3)
    np.testing.assert_allclose(sharpened.numpy(), p / p.sum(-1, keepdims=True), rtol=1e-4)
    assert torch.equal(sharpened.argsort(-1), probabilities.argsort(-1))
    assert (entropy(sharpened) < entropy(probabilities)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.01, 1e-4])
def test_sharpening_of_extremes(temperature):
    probabilities = torch.tensor([[0.0, 1, 0, 0], [0.25] * 4, [0.5, 0, 0.5, 0]])
    # The largest class takes all; equals share. High powers of 1/4 must not end in 0 / 0.
    torch.testing.assert_close(sharpen(probabilities, temperature), probabilities)
    assert sharpen(torch.ones(1, 1), temperature).tolist() == [[1]]
    cold = sharpen(torch.tensor([0.26, 0.25, 0.25, 0.24]), temperature)
    assert cold.sum().item() == pytest.approx(1)
    if temperature == 1e-4:
        assert cold.tolist() == [1, 0, 0, 0]


def test_sharpening_of_half_precision_is_computed_in_single():
    half = random_targets().bfloat16()
    assert sharpen(half, 0.5).dtype == torch.float32
    assert torch.equal(sharpen(half, 0.5), sharpen(half.float(), 0.5))


# -- prior -----------------------------------------------------------------------------------------


def test_prior_divergence_by_hand():
    divergence = prior_divergence(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
    assert divergence.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_prior_divergence_is_that_of_kullback_and_leibler():
    prior, mean = random_targets(2)
    expected = F.kl_div(mean.double().log(), prior.double(), reduction="sum").item()
    assert prior_divergence(prior, mean).item() == pytest.approx(expected, rel=1e-5)
    assert prior_divergence(mean, prior).item() != pytest.approx(expected, rel=1e-2)
    assert prior_divergence(prior, prior).item() == pytest.approx(0, abs=1e-6)


def test_gradient_of_prior_divergence():
    prior = torch.tensor([0.5, 0.3, 0.2])
    assert_gradient(lambda mean: prior_divergence(prior, mean), torch.tensor([0.3, 0.3, 0.4]))


def test_prior_divergence_where_a_share_is_zero():
    prior, mean = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert prior_divergence(prior, mean).item() == pytest.approx(math.log(2))
    collapsed = torch.tensor([1.0, 0.0], requires_grad=True)
    divergence = prior_divergence(torch.tensor([0.5, 0.5]), collapsed)
    divergence.backward()
    # 0.5 log(0.5 / tiny): much, but finite, as is its gradient.
    assert 40 < divergence.item() < 50
    assert collapsed.grad.isfinite().all()
    assert prior_divergence(torch.ones(1), torch.ones(1)).item() == 0


# -- contrast --------------------------------------------------------------------------------------


def contrast(embedding, classes, temperature=0.5, part=slice(None)):
    """Loss of some anchors against all."""
    return supervised_contrastive(
        embedding[part], classes[part], embedding, classes,
        own_index=torch.arange(len(embedding))[part], temperature=temperature,
    )  # fmt: skip


def random_embedding(num_rows=12, dim=5, seed=3):
    return F.normalize(random_logits(num_rows, dim, seed), dim=-1)


CLASSES = torch.tensor([0, 1, -1, 0, 2, 1, -1, 0, 3, 3, -1, 3])  # class 2 is without a partner


def naive_contrast(embedding, classes, temperature):
    """The formula as two loops over samples that take part, in float64."""
    z, classes = embedding.double().numpy(), classes.tolist()
    taking_part = [i for i, c in enumerate(classes) if c >= 0]
    total, count = 0.0, 0
    for i in taking_part:
        others = [a for a in taking_part if a != i]
        partners = [p for p in others if classes[p] == classes[i]]
        if not partners:
            continue
        normaliser = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        logs = [z[i] @ z[p] / temperature - math.log(normaliser) for p in partners]
        total -= sum(logs) / len(partners)
        count += 1
    return total, count


def test_contrast_by_hand():
    total, count = contrast(torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1]), 1.0)
    assert total.item() == pytest.approx(2 * (math.log(math.e + 1 / math.e) - 1))
    assert count.item() == 2


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_contrast_equals_two_plain_loops(temperature):
    embedding = random_embedding()
    total, count = contrast(embedding, CLASSES, temperature)
    expected_total, expected_count = naive_contrast(embedding, CLASSES, temperature)
    assert total.item() == pytest.approx(expected_total, rel=1e-5)
    assert count.item() == expected_count == 8


def test_samples_that_take_no_part_change_nothing():
    embedding, taking_part = random_embedding(), CLASSES >= 0
    among_all = contrast(embedding, CLASSES)
    alone = contrast(embedding[taking_part], CLASSES[taking_part])
    torch.testing.assert_close(torch.stack(among_all), torch.stack(alone))


def test_gradient_of_contrast():
    embedding = random_embedding(6, 3)
    classes = torch.tensor([0, 1, 0, -1, 1, 0])
    assert_gradient(lambda z: contrast(z, classes)[0], embedding)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_contrast_is_the_sum_over_the_ranks_anchors(num_ranks):
    size = len(CLASSES) // num_ranks
    parts = [slice(start, start + size) for start in range(0, len(CLASSES), size)]
    whole, parted = (random_embedding().requires_grad_() for _ in range(2))
    total, count = contrast(whole, CLASSES)
    sums = [torch.stack(contrast(parted, CLASSES, part=part)) for part in parts]
    summed_total, summed_count = torch.stack(sums).sum(0)
    torch.testing.assert_close(summed_total, total)
    assert summed_count == count
    total.backward()
    summed_total.backward()
    torch.testing.assert_close(parted.grad, whole.grad)


@pytest.mark.parametrize("classes", [[0, 1, 2], [-1, -1, -1], [4, -1, -1]])
def test_contrast_without_any_partner(classes):
    embedding = random_embedding(3).requires_grad_()
    total, count = contrast(embedding, torch.tensor(classes), 0.07)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert embedding.grad.tolist() == torch.zeros(3, 5).tolist()


def test_contrast_of_one_sample_and_of_no_anchor():
    assert torch.stack(contrast(torch.ones(1, 1), torch.tensor([0]))).tolist() == [0, 0]
    nobody = contrast(random_embedding(), CLASSES, part=slice(0, 0))
    assert torch.stack(nobody).tolist() == [0, 0]


def test_contrast_of_one_class_of_equal_embeddings():
    # Each of the four sees three equal others, all partners: log 3 each.
    embedding = F.normalize(torch.ones(4, 2), dim=-1).requires_grad_()
    total, count = contrast(embedding, torch.zeros(4, dtype=torch.int64), 0.01)
    assert total.item() == pytest.approx(4 * math.log(3), rel=1e-4)
    total.backward()
    assert count.item() == 4 and embedding.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrast_is_computed_in_single_precision(dtype):
    half = random_embedding().to(dtype)
    expected = torch.stack(contrast(half.float(), CLASSES, 0.07))
    assert torch.equal(torch.stack(contrast(half, CLASSES, 0.07)), expected)
    with torch.autocast("cpu", dtype):
        total, count = contrast(half.float(), CLASSES, 0.07)
    assert total.dtype == torch.float32
    assert torch.equal(torch.stack([total, count]), expected)
