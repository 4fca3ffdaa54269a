"""Mixing samples, and refining their labels: what MixMatch and its descendants share.

mixup: Zhang et al., ICLR 2018. MixMatch: Berthelot et al., NeurIPS 2019. Co-refinement and
co-guessing: Li, Socher and Hoi, DivideMix, ICLR 2020.

Differs from these programs: partners are neighbours in the shuffled global batch instead of a
second random permutation. A shuffle's neighbours are a uniformly random pairing already, and
neighbours lie on one rank, so the result does not depend on the number of processes.
"""

import numpy as np
import torch
from torch import Tensor

from engine import collectives
from methods.losses import sharpen
from methods.method import MethodError, Problem
from methods.separation import CORRECT, MIS_H

__all__ = ["mix_neighbours", "mixup_coefficient", "refine_targets", "require_neighbours"]


def mixup_coefficient(alpha: float, seed: int, step: int, *, beta: float | None = None) -> float:
    """The step's mixing coefficient from Beta(alpha, beta), the same on every rank.

    Args:
        alpha: First parameter > 0.
        seed: Seed of the run.
        step: Global step.
        beta: Second parameter > 0; None = alpha, mixup's choice.
    """
    generator = np.random.default_rng([seed, step])
    return float(generator.beta(alpha, alpha if beta is None else beta))


def require_neighbours(alpha: float, problem: Problem) -> None:
    """Check that each sample of a process's part of a batch has a neighbour to be mixed with.

    Raises:
        MethodError: There is mixup (alpha > 0), and the part is of odd size.
    """
    size = problem.batch_size // collectives.num_ranks()
    if alpha > 0 and size % 2:
        raise MethodError(
            f"method.mixup_alpha: mixup pairs neighbours, so each process needs an even number of "
            f"samples, got {size}; change optim.batch_size"
        )


def mix_neighbours(values: Tensor, coefficient: float) -> Tensor:
    """Mix samples 0 and 1, 2 and 3, and so on, with each other.

    Args:
        values: (B, ...) float images or targets; B even.
        coefficient: Share lambda of a sample itself; its neighbour has 1 - lambda.

    Returns:
        Tensor of the same shape.
    """
    neighbour = torch.arange(len(values), device=values.device) ^ 1
    return coefficient * values + (1 - coefficient) * values[neighbour]


def refine_targets(
    given: Tensor, partner: Tensor, both: Tensor, correct: Tensor, groups: Tensor,
    *, temperature: float, sharpen_mis_l: bool,
) -> Tensor:  # fmt: skip
    """Targets of a batch by group (DivideMix, section 3.2; QMix adds the third kind).

    Correct, co-refinement: ``sharpen(w y + (1 - w) partner)``; Mis-H, co-guessing:
    ``sharpen(both)``; Mis-L, pseudo-labelling: ``partner``, sharpened on demand.

    Hand example: given (1, 0), partner = both = (0.4, 0.6), w = 0.5, T = 0.5. As Correct the mix is
    (0.7, 0.3), sharpened (0.49, 0.09) / 0.58 = (0.845, 0.155); as Mis-H (0.16, 0.36) / 0.52 =
    (0.308, 0.692); as Mis-L (0.4, 0.6).

    Args:
        given: (B, C) float, one-hot given labels y.
        partner: (B, C) float, prediction that refines labels.
        both: (B, C) float, mean prediction of both networks.
        correct: (B,) float in [0, 1], posterior w of Correct.
        groups: (B,) uint8.
        temperature: T of sharpening.
        sharpen_mis_l: Whether to sharpen the third kind.

    Returns:
        (B, C) float32, rows sum to 1, without gradient.
    """
    share = correct.unsqueeze(1)
    refined = sharpen(share * given + (1 - share) * partner, temperature)
    guessed = sharpen(both, temperature)
    pseudo = sharpen(partner, temperature) if sharpen_mis_l else partner
    group = groups.unsqueeze(1)
    targets = torch.where(group == CORRECT, refined, torch.where(group == MIS_H, guessed, pseudo))
    return targets.detach()
