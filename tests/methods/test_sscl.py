import gc
import math

import pytest
import torch
import torch.nn.functional as F
from small_problem import (
    LABELS,
    NUM_CLASSES,
    TRAIN_IDS,
    build_ledger,
    build_method,
    draw,
    make_batch,
)

from methods.method import MethodError
from methods.mixmatch import mixup_coefficient
from methods.separation import CORRECT, MIS_H
from methods.sscl import keeps_label

BEFORE, AFTER = 1, 3  # an epoch without and one with promotion
PARTNER = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
SETTINGS = {"projector_dim": 4, "queue_size": 12, "promotion_epoch": 2, "threshold": 0.34}
NAN = math.nan


def make_sscl(**settings):
    """SSCL, its ledger, and a key encoder that differs from the query encoder as in a run."""
    method = build_method("sscl", **SETTINGS | settings)
    for parameter in method.key_encoder.parameters():
        parameter += 0.3 * draw(*parameter.shape)
    return method, build_ledger(method)


# -- which labels are kept -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidence", "labels", "share", "kept"),
    [
        ([0.2, 0.9, 0.5], [0, 0, 0], 0.5, [0, 1, 1]),
        ([0.2, 0.9, 0.5, 0.1], [0, 0, 0, 0], 0.5, [0, 1, 1, 0]),
        # Of each class its own half, however sure the others are.
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.5, [1, 0, 1, 0]),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], 0.5, [1, 1, 0, 0]),
        # Unknown ones keep their label and do not count: floor(0.5 * 3) = 1.
        ([NAN, 0.9, 0.3, 0.5, NAN], [2, 2, 2, 2, 2], 0.5, [1, 1, 0, 1, 1]),
        ([NAN, NAN], [0, 1], 0.9, [1, 1]),
        ([0.1, 0.2], [0, 1], 0.9, [1, 1]),  # floor(0.9 * 1) = 0
        ([0.1, 0.2, 0.3], [0, 0, 0], 0.0, [1, 1, 1]),
    ],
)
def test_the_labels_that_are_kept_by_hand(confidence, labels, share, kept):
    found = keeps_label(torch.tensor(confidence), torch.tensor(labels), 3, share)
    assert found.tolist() == [bool(k) for k in kept]


@pytest.mark.parametrize("percent", [29, 50, 58])
def test_the_number_not_kept_of_a_hundred(percent):
    """29 % of 100 are 28.999999999999996 in floating point."""
    kept = keeps_label(draw(100), torch.zeros(100, dtype=torch.int64), 1, percent / 100)
    assert (~kept).sum() == percent


# -- promotion -------------------------------------------------------------------------------------


def know(ledger, predictions):
    """Write predictions (N, C) of all samples, as the steps of an epoch do."""
    ledger.write(torch.arange(len(LABELS)), prediction=predictions)
    ledger.synchronise()


def predictions_of(confidence):
    """(N, C) with these probabilities of the given labels, the rest shared by the others."""
    given = F.one_hot(LABELS, NUM_CLASSES).float()
    confidence = torch.tensor(confidence).unsqueeze(1)
    return given * confidence + (1 - given) * (1 - confidence) / (NUM_CLASSES - 1)


# Labels are 0 1 2 0 1 0 0 2 0 1 2 2; samples 0 and 1 are not trained on.
CONFIDENCE = [0.0, 0.0, 0.1, 0.9, 0.2, 0.3, 0.6, 0.5, 0.4, 0.8, 0.7, 0.05]
# Of class 0 samples 5 and 8, of class 1 sample 4, of class 2 samples 2 and 11.
NOT_KEPT = [2, 4, 5, 8, 11]


def test_promotion_ranks_training_samples_by_class():
    method, ledger = make_sscl()
    know(ledger, predictions_of(CONFIDENCE))
    method.separate(ledger, AFTER)
    assert ledger["group"].shape == (12, 1)
    assert (ledger["group"][:, 0] == MIS_H).nonzero().flatten().tolist() == NOT_KEPT
    assert ledger["group"].unique().tolist() == [CORRECT, MIS_H]
    known = torch.tensor(CONFIDENCE)[TRAIN_IDS]
    expected = torch.stack([known, 1 - known, torch.zeros(10)], -1)
    torch.testing.assert_close(ledger["posterior"][TRAIN_IDS, 0], expected)
    assert ledger["posterior"][:2].eq(0).all()


def test_a_label_that_was_not_kept_may_be_kept_later():
    method, ledger = make_sscl()
    know(ledger, predictions_of(CONFIDENCE))
    method.separate(ledger, 2)
    know(ledger, predictions_of([1 - c for c in CONFIDENCE]))
    method.separate(ledger, 3)
    # Of class 1, samples 4 and 9 have changed places.
    assert ledger["group"][[4, 9], 0].tolist() == [CORRECT, MIS_H]


def test_samples_never_drawn_keep_their_labels():
    method, ledger = make_sscl()
    method.separate(ledger, 2)
    assert ledger["group"].eq(CORRECT).all()
    assert ledger["posterior"][TRAIN_IDS, 0].tolist() == [[1, 0, 0]] * 10
    terms = method(make_batch(method, ledger, AFTER))
    assert all(term.total.isfinite() for term in terms.values())


def test_separation_begins_with_the_promotion_epoch_and_needs_no_survey():
    method, _ = make_sscl(promotion_epoch=2)
    assert [method.separates(epoch) for epoch in range(5)] == [False, False, True, True, True]
    assert not any(method.needs_survey(epoch) for epoch in range(5))


@pytest.mark.parametrize("promotion", ["soft", "drop"])
def test_the_robust_term_of_promoted_labels(promotion):
    method, ledger = make_sscl(promotion=promotion, q=0.4, lambda_robust=3.0)
    know(ledger, predictions_of(CONFIDENCE))
    method.separate(ledger, AFTER)
    batch = make_batch(method, ledger, AFTER)
    probabilities = F.softmax(method.network(batch.views["weak"]).logits, -1)
    kept = torch.tensor([i not in NOT_KEPT for i in range(8)])
    targets = F.one_hot(LABELS[:8], NUM_CLASSES).float()
    if promotion == "soft":
        targets[~kept] = predictions_of(CONFIDENCE)[:8][~kept]
    losses = (1 - (targets * probabilities).sum(-1) ** 0.4) / 0.4
    if promotion == "drop":
        losses = losses[kept]
    term = method(batch)["robust"]
    torch.testing.assert_close(term.total, losses.sum())
    assert (term.count.item(), term.weight) == ({"soft": 8, "drop": 5}[promotion], 3)


@pytest.mark.parametrize("promotion", ["soft", "drop"])
def test_a_batch_without_kept_labels_has_finite_gradients(promotion):
    method, ledger = make_sscl(promotion=promotion)
    know(ledger, predictions_of(CONFIDENCE))
    ledger.fill("group", torch.full_like(ledger["group"], MIS_H))
    terms = method(make_batch(method, ledger, AFTER))
    sum(term.total for term in terms.values()).backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    has_gradient = method.network.classifier.weight.grad.abs().sum() > 0
    assert has_gradient == (promotion == "soft")


# -- the terms -------------------------------------------------------------------------------------


class Expected:
    """The terms of a batch written out, with a list of what entered the queue as its memory."""

    def __init__(self, method):
        self.method, self.queue = method, []

    def step(self, batch):
        config, network = self.method.config, self.method.network
        keys_of = self.method.key_encoder.copy
        logits = network(batch.views["weak"]).logits
        probabilities = F.softmax(logits, -1).detach()
        strong = [self.mix(batch.views[name], batch.step) for name in ("strong0", "strong1")]
        queries = [
            F.normalize(network.predictor(network.projector(network.encoder(view))), dim=-1)
            for view in strong
        ]
        keys = [F.normalize(keys_of.projector(keys_of.encoder(view)), dim=-1) for view in strong]
        batch_entries = list(zip(*keys, probabilities, strict=True))
        self.queue = (self.queue + batch_entries)[-config.queue_size :]
        similarity = sum(
            self.similarity(query, 1 - view, p, own)
            for view in range(2)
            for query, p, own in zip(queries[view], probabilities, batch_entries, strict=True)
        )
        bottleneck = sum(
            F.kl_div(F.log_softmax(keys[1 - view], -1), F.log_softmax(queries[view], -1),
                     reduction="sum", log_target=True)
            for view in range(2)
        )  # fmt: skip
        of_label = probabilities[torch.arange(8), batch.rows["label"]]
        robust = ((1 - of_label**config.q) / config.q).sum()
        return {"robust": robust, "similarity": similarity, "bottleneck": bottleneck}

    def mix(self, images, step):
        if self.method.config.mixup_alpha == 0:
            return images
        share = mixup_coefficient(
            self.method.config.mixup_alpha, self.method.problem.seed, step, beta=1.0
        )
        share = max(share, 1 - share)
        return share * images + (1 - share) * images[PARTNER]

    def similarity(self, query, view, p, own):
        """One query against the keys of one view of all that is in the queue."""
        weights, distances = [], []
        for entry in self.queue:
            dot = (query @ entry[view]).clamp(1e-4, 1 - 1e-4)
            confidence = 1.0 if entry is own else float(p @ entry[2])
            if confidence >= self.method.config.threshold:
                weights.append(confidence)
                distances.append(2 - dot if entry is own else 2 + (1 - dot).log())
        self.num_pairs = len(weights)
        return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)


# Steps 0 and 3: coefficients of Beta(5, 1) above and below a half.
@pytest.mark.parametrize("mixup_alpha", [0.0, 5.0])
def test_terms_equal_their_formulas_while_the_queue_fills_and_wraps(mixup_alpha):
    method, ledger = make_sscl(
        mixup_alpha=mixup_alpha, q=0.4,
        lambda_robust=1.5, lambda_similarity=2.5, lambda_bottleneck=3.5,
    )  # fmt: skip
    assert mixup_coefficient(5.0, method.problem.seed, 3, beta=1.0) < 0.5
    expected = Expected(method)
    for step in range(5):
        batch = make_batch(method, ledger, BEFORE, (torch.arange(8) * 5 + step) % 12, step)
        terms, totals = method(batch), expected.step(batch)
        assert terms.keys() == totals.keys()
        for name, total in totals.items():
            torch.testing.assert_close(terms[name].total, total, msg=f"{name} at step {step}")
    assert [term.count.item() for term in terms.values()] == [8, 16, 16]
    assert [term.weight for term in terms.values()] == [1.5, 2.5, 3.5]
    assert 1 < expected.num_pairs < 12  # some pairs are confident and some are not


def test_gradients_are_those_of_the_formulas():
    method, ledger = make_sscl()
    expected = Expected(method)
    for step in range(2):
        batch = make_batch(method, ledger, BEFORE, step=step)
        terms, totals = method(batch), expected.step(batch)
    parameters = list(method.network.predictor.parameters())
    for name in ("similarity", "bottleneck"):
        found = torch.autograd.grad(terms[name].total, parameters, retain_graph=True)
        wanted = torch.autograd.grad(totals[name], parameters, retain_graph=True)
        for gradient, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, other)
            assert gradient.abs().max() > 0


def test_contrast_leaves_the_classifier_and_robust_loss_the_heads_alone():
    method, ledger = make_sscl()
    terms = method(make_batch(method, ledger, BEFORE))
    network = method.network
    heads = [*network.projector.parameters(), *network.predictor.parameters()]
    for name, others in [
        ("robust", heads),
        ("similarity", list(network.classifier.parameters())),
        ("bottleneck", list(network.classifier.parameters())),
    ]:
        gradients = torch.autograd.grad(
            terms[name].total, others, retain_graph=True, allow_unused=True
        )
        assert all(g is None or g.eq(0).all() for g in gradients), name


def test_the_prediction_of_the_weak_view_is_noted():
    method, ledger = make_sscl()
    batch = make_batch(method, ledger, BEFORE)
    method(batch)
    assert batch.updates.keys() == {"prediction"}
    expected = F.softmax(method.network(batch.views["weak"]).logits, -1)
    torch.testing.assert_close(batch.updates["prediction"], expected)
    assert not batch.updates["prediction"].requires_grad
    assert ledger["prediction"].isnan().all()  # before a step has drawn a sample
    ledger.write(batch.sample_ids, **batch.updates)
    ledger.synchronise()
    torch.testing.assert_close(ledger["prediction"][:8], expected)


def test_views_are_two_strong_ones_and_a_weak_one():
    method, _ = make_sscl()
    kinds = {name: (view.kind, view.number) for name, view in method.views(BEFORE).items()}
    assert kinds == {"strong0": ("strong", 0), "strong1": ("strong", 1), "weak": ("weak", 0)}


# -- the key encoder -------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_key_encoder_moves_once_a_step(decay):
    method, ledger = make_sscl(key_decay=decay)
    before = {k: v.clone() for k, v in method.key_encoder.copy.state_dict().items()}
    terms = method(make_batch(method, ledger, BEFORE))
    sum(term.total for term in terms.values()).backward()
    for name, value in method.key_encoder.copy.state_dict().items():
        assert torch.equal(value, before[name]), name
    method.after_step()
    for name, value in method.network.state_dict().items():
        moved = method.key_encoder.copy.state_dict()[name]
        torch.testing.assert_close(moved, decay * before[name] + (1 - decay) * value)


def test_the_key_encoder_gets_no_gradient_and_does_not_predict():
    method, ledger = make_sscl()
    terms = method(make_batch(method, ledger, BEFORE))
    sum(term.total for term in terms.values()).backward()
    for parameter in method.key_encoder.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not any(module.training for module in method.train().key_encoder.modules())
    images = draw(4, 3, 8, 8, seed=9)
    expected = F.softmax(method.network(images).logits, -1)
    torch.testing.assert_close(method.eval()(images), expected.unsqueeze(0))


# -- memory ----------------------------------------------------------------------------------------


def live_tensors():
    """Number and bytes of all tensors that are alive."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    sizes = [value.nbytes for value in gc.get_objects() if type(value) in kinds]
    return len(sizes), sum(sizes)


def test_a_queue_shorter_than_the_batch_is_refused_with_the_keys():
    with pytest.raises(MethodError, match=r"method\.queue_size: 7 is less than optim.batch_size 8"):
        make_sscl(queue_size=7)


def run_steps(method, ledger, num_steps):
    """Yields after each step."""
    optimizer = torch.optim.SGD(method.network.parameters(), lr=0.01, momentum=0.9)
    for step in range(num_steps):
        ids = (torch.arange(4) + 4 * step) % len(LABELS)
        terms = method(make_batch(method, ledger, BEFORE, ids, step))
        optimizer.zero_grad()
        sum(term.total for term in terms.values()).backward()
        optimizer.step()
        method.after_step()
        del terms
        yield step


def test_a_thousand_steps_take_no_more_memory_than_fifty():
    method, ledger = make_sscl(queue_size=9)

    def as_it_is(tensor):
        return tensor

    # With hooks, what a graph keeps for its backward pass is alive in Python's eyes too.
    with torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is):
        for step in run_steps(method, ledger, 1000):
            if step == 49:
                after_fifty = live_tensors()
            if step == 999:
                assert live_tensors() == after_fifty
    assert all(p.isfinite().all() for p in method.parameters())
