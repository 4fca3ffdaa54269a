"""Trainers of the tiny setting inside the test's own process."""

import functools
import json

from method_settings import tiny_config

from engine.runtime import start_processes
from engine.trainer import Trainer
from launcher.assemble import build_method, build_task, load_noisy_data
from launcher.settings import Config


def make_config(method, /, **sections):
    """The tiny configuration as the loader gives it, with sections' keys replaced."""
    tree = json.dumps(tiny_config(method, **sections))
    return Config.model_validate_json(tree, strict=True, extra="forbid")


@functools.cache
def _noisy_data(sections):
    """Drawn once for all tests: the data do not depend on the method."""
    return load_noisy_data(Config.model_validate_json(sections))


def noisy_data(config):
    """The configuration's samples with their noise."""
    tree = make_config("cross_entropy").model_dump(mode="json")
    for name in ("run", "data", "noise"):
        tree[name] = getattr(config, name).model_dump(mode="json")
    return _noisy_data(json.dumps(tree, sort_keys=True))


def make_trainer(config):
    """A trainer at its first epoch; a test that makes one takes the fixture fresh_processes."""
    data = noisy_data(config)
    accelerator = start_processes(config.runtime)
    method, task = build_method(config, data), build_task(config, data, pin_memory=False)
    return Trainer(accelerator, method, task, config.optim, config.evaluation)


def train(config):
    """Train to the end; returns the trainer and the metrics of each epoch."""
    trainer, history = make_trainer(config), []
    trainer.fit(lambda epoch, metrics: history.append(dict(metrics)))
    return trainer, history
