"""The whole configuration: every section stands beside the part it configures."""

import functools
import operator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from data.noise import NoiseConfig
from data.sources import DataConfig
from data.views import ViewsConfig
from engine.audit.files import AuditConfig
from engine.optim import OptimConfig
from engine.predictor import EvaluationConfig
from engine.record import RunConfig
from engine.runtime import RuntimeConfig
from engine.tracking.tracker import TrackingConfig
from methods import METHODS
from methods.networks import ModelConfig

__all__ = ["MAY_CHANGE_ON_RESUME", "Config"]

# Which keys a resumed run may change: they alter how a run is executed, not what it computes; only
# run.epochs makes another run of it, longer or shorter. Plain BatchNorm sees what one process
# passes at once, so with it the number of processes and model.micro_batch_size do matter a little.
MAY_CHANGE_ON_RESUME = (
    "run.dir",
    "run.epochs",
    "run.save_every_steps",
    "run.keep_checkpoints",
    "run.keep_best",
    "run.keep_every_epochs",
    "data.root",
    "data.prepared",
    "data.num_workers",
    "data.cache",
    "model.micro_batch_size",
    "model.recompute",
    "model.compile",
    "model.cuda_graphs",
    "audit",
    "runtime.device",
    "runtime.zero_stage",
    "runtime.deterministic",
    "runtime.timeout_seconds",
    "tracking",
)

# One Config a method, told apart by method.name; a key of another method is refused.
MethodConfig: Any = functools.reduce(operator.or_, (method.Config for method in METHODS.values()))


class Config(BaseModel):
    """A run, as its YAML file and the command line describe it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    run: RunConfig
    data: DataConfig
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    method: Annotated[MethodConfig, Field(discriminator="name")]
    optim: OptimConfig = Field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
