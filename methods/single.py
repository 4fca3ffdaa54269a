"""One view a step, and one network: what the simpler methods share."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.method import Method, Problem, View
from methods.networks import Network

__all__ = ["OneViewConfig", "Single"]


class OneViewConfig(BaseModel):
    """What the sections ``method`` of these methods have in common."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    view: Literal["weak", "strong"] = Field(
        "weak", description="Which view of a sample is trained on."
    )

    def views(self) -> dict[str, View]:
        """The view by its name in a batch."""
        return {"image": View(self.view)}


class Single(Method):
    """Base of the methods that train one network with one pass a step."""

    Config: ClassVar[type[OneViewConfig]]
    config: OneViewConfig

    def __init__(self, config: OneViewConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        self.network = problem.build_network(0, None)

    def views(self, epoch: int) -> Mapping[str, View]:
        """One view of each sample."""
        return self.config.views()

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """One pass with gradient."""
        return {"with_gradient": 1, "without": 0, "survey": 0}

    def predictors(self) -> Sequence[Network]:
        """The network."""
        return [self.network]
