"""One network: what cross-entropy, GCE and ELR share."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from methods.method import Method, Problem

__all__ = ["Single"]


class Single(Method):
    """Base of the methods that train one network with one pass a step."""

    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: BaseModel, problem: Problem) -> None:
        super().__init__(config, problem)
        self.network = problem.build_network(0, None)

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """One pass with gradient."""
        return {"with_gradient": 1, "without": 0, "survey": 0}

    def probabilities(self, images: Tensor) -> Tensor:
        """(1, B, C) class probabilities of the network."""
        return F.softmax(self.network(images).logits.float(), dim=-1).unsqueeze(0)
