import math

import pytest
import torch
from pydantic import BaseModel, ValidationError

from engine.config import ConfigError, dump_config, load_config
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


def test_multistep_drops_at_its_shares_of_the_whole_run():
    config = OptimConfig(lr=2.0, schedule="multistep", milestones=(0.3, 0.6), gamma=0.5)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates == [2.0] * 3 + [1.0] * 3 + [0.5] * 4


def test_multistep_comes_after_lr_warm_up_which_does_not_move_it():
    config = OptimConfig(
        lr=1.0, schedule="multistep", milestones=(0.25, 0.75), lr_warmup_steps=4, final_lr_share=0.9
    )
    rates = [learning_rate(config, step, 8) for step in range(8)]
    # gamma is 0.1; the milestone passed during warm-up counts from its end on.
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_halving_cosine_by_hand():
    config = OptimConfig(lr=8.0, schedule="halving_cosine", lr_warmup_steps=2, final_lr_share=0.5)
    rates = [learning_rate(config, step, 12) for step in range(13)]
    assert rates[:3] == [4.0, 8.0, 8.0]
    # After a tenth: nothing is halved yet, (1 + cos 18) / 2 = 0.975528.
    assert rates[3] == pytest.approx(8 * 0.9755283)
    # After two tenths, a fifth: halved once, (1 + cos 36) / 2 = 0.904508.
    assert rates[4] == pytest.approx(8 / 2 * 0.9045085)
    # After five tenths: halved twice, half a cosine is at 1 / 2.
    assert rates[7] == pytest.approx(8 / 4 * 0.5)
    # After eight tenths: halved four times, (1 + cos 144) / 2 = 0.095492.
    assert rates[10] == pytest.approx(8 / 16 * 0.0954915)
    assert rates[12] == pytest.approx(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "multistep"}, "milestones: not set; schedule multistep needs"),
        ({"milestones": (0.5,)}, r"milestones: set to \[0.5\], but schedule cosine has none"),
        (
            {"schedule": "halving_cosine", "milestones": (0.5,)},
            r"milestones: set to \[0.5\], but schedule halving_cosine has none",
        ),
        *(
            ({"schedule": "multistep", "milestones": wrong}, "milestones: set to .*; expected asc")
            for wrong in [(0.6, 0.3), (0.3, 0.3), (0.0, 0.5), (0.5, 1.0), (-0.1,)]
        ),
    ],
)
def test_milestones_go_with_multistep_and_ascend(settings, message):
    with pytest.raises(ValidationError, match=f"Value error, {message}"):
        OptimConfig(**settings)


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.5])
def test_gamma_is_a_factor_that_lowers(gamma):
    with pytest.raises(ValidationError, match="gamma"):
        OptimConfig(schedule="multistep", milestones=(0.5,), gamma=gamma)


class Root(BaseModel):
    optim: OptimConfig


def test_milestones_are_a_list_in_a_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("optim: {schedule: multistep, milestones: [0.5, 0.75], gamma: 0.2}\n")
    config = load_config(Root, path)
    assert config.optim.milestones == (0.5, 0.75)
    # What is refused is one line that names the section and the key.
    with pytest.raises(ConfigError) as caught:
        load_config(Root, path, ["optim.milestones=[0.75, 0.5]"])
    assert str(caught.value) == (
        f"{path} with command line: optim: milestones: set to [0.75, 0.5]; "
        "expected ascending shares of the run, all > 0 and < 1"
    )
    path.write_text(dump_config(config))
    assert load_config(Root, path) == config


@pytest.mark.parametrize(("name", "expected"), [("adam", 1.99), ("adamw", 1.998), ("sgd", 1.998)])
def test_decay_of_a_weight_without_gradient_by_hand(name, expected):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 2.0)
    module.weight.grad = torch.zeros_like(module.weight)
    build_optimizer(module, OptimConfig(name=name, lr=0.01, weight_decay=0.1)).step()
    # L2 makes the gradient 0.1 * 2, of which Adam's first step keeps the sign alone: 2 - 0.01.
    # The others subtract 0.01 * 0.1 * 2.
    assert module.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
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
