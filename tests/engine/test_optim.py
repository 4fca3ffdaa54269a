import math

import pytest
import torch

from engine.optim import OptimConfig, build_optimizer, learning_rate, set_learning_rate


def test_learning_rate_rises_then_falls_along_half_a_cosine():
    config = OptimConfig(lr=2.0, lr_warmup_steps=4, final_lr_share=0.1)
    assert [learning_rate(config, step, 12) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(config, 4, 12) == 2.0
    assert learning_rate(config, 8, 12) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(config, 12, 12) == pytest.approx(0.2)
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate(config, 6, 12) == pytest.approx(2.0 * (0.1 + 0.9 * quarter))


def test_constant_schedule():
    config = OptimConfig(lr=0.3, schedule="constant")
    assert {learning_rate(config, step, 10) for step in range(10)} == {0.3}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_weights_decay_and_frozen_parameters_stay_out(name):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    module[1].requires_grad_(False)
    optimizer = build_optimizer(module, OptimConfig(name=name, weight_decay=0.1))
    decayed, free = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert decayed["weight_decay"] == 0.1
    assert [p.shape for p in free["params"]] == [(2,)]
    assert free["weight_decay"] == 0.0
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
