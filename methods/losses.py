"""Losses and label arithmetic shared by methods: pure functions of tensors.

Shapes: B batch, G global batch (all ranks), C classes, D embedding. Functions take logits where
their argument says logits, otherwise probabilities. Everything is computed in float32, since
half precision rounds 1 - 1e-4 to 1. A loss "per sample" is (B,) and not averaged: the engine
divides sums by global counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "early_learning_penalty",
    "entropy",
    "generalised_cross_entropy",
    "information_bottleneck",
    "prior_divergence",
    "sharpen",
    "similarity_contrastive",
    "soft_cross_entropy",
    "squared_error",
    "supervised_contrastive",
]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against soft targets: ``-sum_c t_c log softmax(logits)_c``.

    Args:
        logits: (B, C) float.
        targets: (B, C) float, rows sum to 1.

    Returns:
        (B,) float32. Two classes, logits (0, 0), any target: log 2 = 0.693.
    """
    return -(targets.float() * F.log_softmax(logits.float(), dim=-1)).sum(-1)


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: float) -> Tensor:
    """``(1 - (sum_c t_c p_c)^q) / q`` (Zhang and Sabuncu, NeurIPS 2018, eq. 6).

    Between cross-entropy (q towards 0) and 1 - p (q = 1), which no wrong label can dominate.

    Args:
        logits: (B, C) float, p their softmax.
        targets: (B, C) float, rows sum to 1.
        q: In (0, 1].

    Returns:
        (B,) float32 in [0, 1 / q]. Two classes, logits (0, 0), any target, q = 0.5:
        2 (1 - sqrt(0.5)) = 0.586.
    """
    # By logarithms, since p^q has an infinite slope where p underflows to 0.
    log_agreement = (F.log_softmax(logits.float(), dim=-1) + targets.float().log()).logsumexp(-1)
    return -torch.expm1(q * log_agreement) / q


def early_learning_penalty(logits: Tensor, targets: Tensor) -> Tensor:
    """``log(1 - sum_c p_c t_c)`` (Liu et al., ELR, NeurIPS 2020, eq. 6).

    Args:
        logits: (B, C) float, p their softmax; as in the authors' program within [1e-4, 1 - 1e-4].
        targets: (B, C) float >= 0, t, rows sum to at most 1, without gradient.

    Returns:
        (B,) float32 <= 0, falling as prediction and target agree. Two classes, logits (0, 0),
        target (1, 0): log 0.5 = -0.693.
    """
    probabilities = F.softmax(logits.float(), dim=-1).clamp(1e-4, 1 - 1e-4)
    return (1 - (probabilities * targets.float()).sum(-1)).log()


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Brier score against soft targets: ``sum_c (softmax(logits)_c - t_c)^2``.

    Args:
        logits: (B, C) float.
        targets: (B, C) float, rows sum to 1.

    Returns:
        (B,) float32 in [0, 2]. Two classes, logits (0, 0), target (1, 0): 0.5.
    """
    return (F.softmax(logits.float(), dim=-1) - targets.float()).square().sum(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """Predictive uncertainty ``-sum_c p_c log p_c`` in nats, with 0 log 0 = 0.

    Args:
        probabilities: (..., C) float, rows sum to 1.

    Returns:
        (...) float32 in [0, log C].
    """
    return torch.special.entr(probabilities.float()).sum(-1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """``p_c^(1/T) / sum_k p_k^(1/T)`` (Berthelot et al., MixMatch, NeurIPS 2019, eq. 7).

    Args:
        probabilities: (..., C) float, rows sum to 1.
        temperature: T > 0; 1 changes nothing, towards 0 the largest class takes all.

    Returns:
        (..., C) float32. (0.8, 0.2) at T = 0.5: (0.64, 0.04) / 0.68 = (0.941, 0.059).
    """
    probabilities = probabilities.float().clamp_min(0)
    # Relative to the largest class, since high powers of all classes could underflow to 0 together.
    powers = (probabilities / probabilities.amax(-1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


def prior_divergence(prior: Tensor, mean_prediction: Tensor) -> Tensor:
    """Regulariser ``sum_c pi_c log(pi_c / p_c)`` against predicting few classes.

    Used by Tanaka et al. (CVPR 2018) and DivideMix (ICLR 2020) with a uniform prior.

    Args:
        prior: (C,) float, pi, sums to 1; classes of share 0 contribute nothing.
        mean_prediction: (C,) float, p, the mean prediction over the *global* batch.

    Returns:
        Scalar float32 >= 0, 0 where both are equal. pi = (1/2, 1/2), p = (3/4, 1/4):
        0.5 log(2/3) + 0.5 log 2 = 0.144.
    """
    tiny = torch.finfo(torch.float32).tiny
    logs = prior.clamp_min(tiny).log() - mean_prediction.float().clamp_min(tiny).log()
    return (prior * logs).sum()


def supervised_contrastive(
    anchors: Tensor, anchor_classes: Tensor, contrasts: Tensor, contrast_classes: Tensor,
    *, own_index: Tensor, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Supervised contrastive loss of some anchors against the whole global batch.

    ``l_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / T) / sum_{a != i} exp(z_i z_a / T) )``
    with P(i) the other samples of i's class (Khosla et al., NeurIPS 2020, eq. 2, one view each).

    Hand example, D = 1, T = 1: z = (1, 1, -1) of classes (0, 0, 1). Anchor 0: log(e^1 + e^-1) - 1 =
    0.127; anchor 1 the same; anchor 2 has no partner and counts for nothing. Sum 0.254, count 2.

    Args:
        anchors: (B, D) float, L2-normalised, this rank's.
        anchor_classes: (B,) int64; negative = takes no part.
        contrasts: (G, D) float, L2-normalised, all ranks'.
        contrast_classes: (G,) int64; negative = takes no part.
        own_index: (B,) int64, the place of each anchor among the contrasts.
        temperature: T > 0.

    Returns:
        Sum over this rank's anchors that have a partner, and their number; float32 scalars.
    """
    # Mixed precision would take the product, and with it all that follows, in half precision.
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors.float() @ contrasts.float().T / temperature
    others = (contrast_classes >= 0).unsqueeze(0).repeat(len(anchors), 1)
    others.scatter_(1, own_index.unsqueeze(1), False)
    partners = others & (anchor_classes.unsqueeze(1) == contrast_classes.unsqueeze(0))
    num_partners = partners.sum(1)
    valid = num_partners > 0
    # A large negative number, not -inf: rows without any contrast would make NaN gradients.
    normaliser = similarity.masked_fill(~others, -1e9).logsumexp(1, keepdim=True)
    log_likelihood = ((similarity - normaliser) * partners).sum(1) / num_partners.clamp_min(1)
    return -(log_likelihood * valid).sum(), valid.sum().float()


def similarity_contrastive(
    queries: Tensor, probabilities: Tensor, keys: Tensor, key_probabilities: Tensor,
    *, own_index: Tensor, filled: Tensor, threshold: float,
) -> Tensor:  # fmt: skip
    """Similarity contrastive loss of queries against a queue (Chen et al., SSCL, MICCAI 2023).

    ``l_i = sum_j w_ij d_ij`` over the queue with ``d_ii = 2 - q_i v_i`` for the own pair and
    ``d_ij = 2 + log(1 - q_i v_j)`` for the others; dot products lie within [1e-4, 1 - 1e-4]. The
    weights w_ij are the confidences ``s_ij = p_i p_j`` (own pair: 1) from the threshold on, divided
    by their sum over the row.

    Hand example of three samples, own pairs in places 0, 1, 2, threshold 0.4. Classes (1, 0),
    (1, 0), (0, 1), so s = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]. Queries (0.8, 0.6), (0.6, 0.8),
    (0, 1); keys (1, 0), (0, 1), (0.6, 0.8). Row 0: half of 2 - 0.8 and half of 2 + log(1 - 0.6):
    0.600 + 0.542 = 1.142. Row 1 the same. Row 2 has itself alone: 2 - 0.8 = 1.2.

    Args:
        queries: (B, D) float, L2-normalised, this rank's.
        probabilities: (B, C) float, class probabilities of the queries.
        keys: (K, D) float, L2-normalised, the queue, without gradient.
        key_probabilities: (K, C) float.
        own_index: (B,) int64, place of each query's own pair in the queue.
        filled: (K,) bool, places that hold a key.
        threshold: Least confidence of a pair.

    Returns:
        (B,) float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dots = (queries.float() @ keys.float().T).clamp(1e-4, 1 - 1e-4)
        confidence = probabilities.float() @ key_probabilities.float().T
    own = own_index.unsqueeze(1)
    confidence = confidence.masked_fill(~filled, 0.0).scatter(1, own, 1.0)
    confidence = torch.where(confidence >= threshold, confidence, 0.0)
    weights = confidence / confidence.sum(1, keepdim=True)
    distance = (2 + (1 - dots).log()).scatter(1, own, 2 - dots.gather(1, own))
    return (weights * distance).sum(1)


def information_bottleneck(queries: Tensor, keys: Tensor) -> Tensor:
    """``KL(softmax(q) || softmax(v))`` over the embedding's dimensions (SSCL, MICCAI 2023).

    Hand example of three samples, D = 2: q = (log 3, 0), (0, 0), (1, 0) against v = (0, 0),
    (log 3, 0), (1, 0). Row 0: 3/4 log(3/2) + 1/4 log(1/2) = 0.131; row 1: 1/2 log(2/3) +
    1/2 log 2 = 0.144; row 2: 0.

    Args:
        queries: (B, D) float.
        keys: (B, D) float, without gradient.

    Returns:
        (B,) float32 >= 0.
    """
    log_queries = F.log_softmax(queries.float(), dim=-1)
    log_keys = F.log_softmax(keys.float(), dim=-1)
    return (log_queries.exp() * (log_queries - log_keys)).sum(-1)
