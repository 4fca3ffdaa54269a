"""Compiled passes and their CUDA graphs, as far as a CPU shows them; tests/gpu has the rest."""

import pytest
import torch
from pydantic import ValidationError
from small_networks import assert_same_tensors, images, small
from tiny_runs import make_config, noisy_data

from launcher.assemble import build_method
from methods.averages import MomentumCopy

MODES = [{"compile": True}, {"compile": True, "cuda_graphs": True}]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"recompute": True, "compile": True}, "compile and recompute: both set"),
        ({"cuda_graphs": True}, "cuda_graphs: set without compile"),
        (
            {"compile": True, "cuda_graphs": True, "micro_batch_size": 4},
            "cuda_graphs and micro_batch_size: both set",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        small(**keys)


@pytest.fixture
def compiled_with(monkeypatch):
    """The modes that torch.compile is asked for; passes themselves stay as they are."""
    asked = []

    def compile(run, *, mode):
        asked.append(mode)
        return run

    monkeypatch.setattr("torch.compile", compile)
    return asked


@pytest.mark.parametrize(("keys", "mode"), [(MODES[0], "default"), (MODES[1], "reduce-overhead")])
def test_a_moving_average_is_compiled_as_its_network_is(keys, mode, compiled_with):
    """Most passes of the semi-supervised methods are those of averaged networks."""
    MomentumCopy(small(**keys), decay=0.5)
    assert compiled_with == [mode, mode]
    MomentumCopy(small(), decay=0.5)
    assert len(compiled_with) == 2


def test_graphs_are_told_of_each_call_of_the_method(compiled_with, monkeypatch):
    """Within a step all passes of all networks keep their memory; the next call frees it."""
    begun = []
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: begun.append(True))
    for keys, expected in zip([{}, *MODES], [0, 0, 2], strict=True):
        begun.clear()
        config = make_config("qmix", model=keys)
        method = build_method(config, noisy_data(config)).eval()
        for _ in range(2):
            method(images(size=config.data.image_size))
        assert len(begun) == expected


@pytest.mark.slow
def test_a_compiled_encoder_and_its_average_compute_the_same():
    plain, compiled = small(norm="group"), small(norm="group", **MODES[1])
    assert_same_tensors(compiled, plain)
    gradients = []
    for network in (plain, compiled):
        network.train()(images()).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)
    average = MomentumCopy(compiled, decay=0.5)
    torch.testing.assert_close(
        average(images()), MomentumCopy(plain, decay=0.5)(images()), rtol=1e-4, atol=1e-4
    )
