"""What a stepper takes over, and what it tells DeepSpeed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from engine.optim import OptimConfig
from engine.stepper import LARGEST_BUCKET, Stepper, ZeroStepper

pytestmark = pytest.mark.usefixtures("fresh_processes")


def make_stepper(name):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    return Stepper(Accelerator(cpu=True), module, OptimConfig(name=name))


def take_step(stepper):
    images = torch.arange(72.0).reshape(2, 4, 3, 3) / 72
    stepper.step(stepper.wrapped(images).square().mean(), rate=0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_from_elsewhere_is_laid_out_as_the_weights_are(name):
    """As a fused step needs it; ZeRO saves contiguous tensors, other devices other flags."""
    there, here = make_stepper(name), make_stepper(name)
    take_step(there)
    state = copy.deepcopy(there.state_dict())
    for moments in state["optimizer"]["state"].values():
        for key, value in moments.items():
            if isinstance(value, torch.Tensor):
                moments[key] = value.contiguous()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    here.module.load_state_dict(there.module.state_dict())
    here.load_state_dict(state)

    optimizer = here.optimizer.optimizer
    assert [group["fused"] for group in optimizer.param_groups] == [False, False]
    weight = here.module[0].weight
    moments = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
    assert moments and all(v.stride() == weight.stride() for v in moments)
    assert not weight.is_contiguous()
    take_step(there)
    take_step(here)
    for ours, theirs in zip(here.module.parameters(), there.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_count_of_steps_lies_where_fused_steps_need_it():
    """With the weights, as float32; torch moves it for optimisers that it takes for fused alone."""
    there, here = make_stepper("adamw"), make_stepper("adamw")
    take_step(there)
    state = copy.deepcopy(there.state_dict())
    for moments in state["optimizer"]["state"].values():
        moments["step"] = moments["step"].double()
    for group in here.optimizer.param_groups:
        group["fused"] = True
    here.load_state_dict(state)
    counts = [moments["step"] for moments in here.optimizer.state.values()]
    assert len(counts) == 4 and all(count.dtype == torch.float32 for count in counts)
    take_step(here)


@pytest.mark.parametrize(
    ("shapes", "bucket"),
    [
        ([(10, 20), (7,)], 256),
        ([(5_000, 4_000), (5_000, 4_000)], LARGEST_BUCKET),
        ([(5_000, 6_000), (7,)], 30_000_000),
    ],
    ids=["all gradients", "the largest bucket", "a larger tensor"],
)
def test_zeros_buffers_are_no_larger_than_the_gradients(monkeypatch, shapes, bucket):
    """By default they are 1.9 GiB a process, for the smallest network too."""
    monkeypatch.setattr(Stepper, "__init__", lambda self, *_: setattr(self, "optimizer", here))
    here = SimpleNamespace(optimizer=None)
    settings = {"zero_optimization": {"stage": 2}}
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=settings)),
        num_processes=2, mixed_precision="no",
    )  # fmt: skip
    module = nn.ParameterList([torch.empty(shape, device="meta") for shape in shapes])
    ZeroStepper(accelerator, module, OptimConfig())
    zero = settings["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (bucket, bucket)


def test_a_loss_that_is_refused_moves_nothing():
    """The backward pass is under way by then."""
    stepper = make_stepper("adamw")
    before = copy.deepcopy(stepper.module.state_dict())

    def refuse():
        assert all(p.grad is not None for p in stepper.module.parameters())
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        stepper.step(stepper.wrapped(torch.ones(2, 4, 3, 3)).sum(), 0.1, refuse)
    after = stepper.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not stepper.optimizer.state


def test_zero_refuses_a_loss_before_its_backward_call_which_steps_too():
    begun = []
    stepper = object.__new__(ZeroStepper)
    stepper.accelerator = SimpleNamespace(backward=begun.append)
    stepper._zero = SimpleNamespace(param_groups=[])

    def refuse():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        stepper.step(torch.ones(()), 0.1, refuse)
    assert begun == []
    stepper.step(torch.ones(()), 0.1)
    assert len(begun) == 1
