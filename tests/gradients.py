"""Gradients checked against differences of values."""

import numpy as np
import torch


def assert_gradient(function, point, step=1e-2, tolerance=2e-3):
    """Compare with central differences.

    In float32 a value of size 1 to 10 is exact to some 1e-6, its difference quotient to 1e-4, and
    the cubic term that the quotient leaves out is of the same size; the tolerance is ample for both
    and far below the gradients, which are of size 0.1 to 10.
    """
    point = point.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    numeric = torch.zeros_like(point)
    for index in np.ndindex(*point.shape):
        moved = []
        for sign in (1, -1):
            shifted = point.detach().clone()
            shifted[index] += sign * step
            moved.append(function(shifted).item())
        numeric[index] = (moved[0] - moved[1]) / (2 * step)
    assert numeric.abs().max() > 0.1
    torch.testing.assert_close(gradient, numeric, rtol=tolerance, atol=tolerance)
