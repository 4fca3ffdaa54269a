"""The benchmark of SSCL's step: both ways come by the same loss; times are not asserted."""

import json
import math
from functools import partial

import pytest
import step
import torch
from published_sscl import WAYS, PublishedStep, Way
from torch import nn

from engine.optim import OptimConfig
from methods.networks import Network, Projector
from methods.sscl import SSCLConfig

BATCH_SIZE, RATE = 4, 0.02
SETTINGS = {"queue_size": 3 * BATCH_SIZE}
# No decay and no clipping, since the program decays all parameters and clips none.
OPTIM = OptimConfig(name="sgd", lr=RATE, batch_size=BATCH_SIZE, weight_decay=0.0, clip_norm=None)


def build(index, heads):
    """A network without normalisation, whose predictions differ from sample to sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 6), nn.Tanh()
        )
        projector = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, heads.dim))
        network = Network(encoder, 6, step.NUM_CLASSES, projector, nn.Linear(heads.dim, heads.dim))
        network.classifier.weight.data *= 8
    return network


def build_both(way, **settings):
    """Our step and the program's in one of its ways, from the same weights."""
    ours = step.OurStep(build, BATCH_SIZE, settings=SSCLConfig(**SETTINGS | settings), optim=OPTIM)
    published = PublishedStep(
        ours.method.network, ours.method.config, step.NUM_CLASSES, way, rate=RATE, weight_decay=0.0
    )
    return ours, published


def take_both(ours, published, num_steps):
    """Losses of both on the same batches, of which the queue holds three."""
    images, labels = step.draw_batch(2 * BATCH_SIZE, 16, ours.device)
    losses = []
    for count in range(num_steps):
        chosen = (torch.arange(BATCH_SIZE) + 3 * count) % (2 * BATCH_SIZE)
        views = {name: view[chosen] for name, view in images.items()}
        losses.append(
            (
                float(ours(views, labels[chosen], count, rate=RATE)),
                float(published(views, labels[chosen], count)),
            )
        )
    return losses


def largest_difference(ours, published):
    pairs = zip(ours.method.network.parameters(), published.network.parameters(), strict=True)
    return max(float((own - other).detach().abs().max()) for own, other in pairs)


@pytest.mark.parametrize("name", WAYS)
def test_all_ways_come_by_our_loss(name, fresh_processes):
    # A key encoder that holds on to nothing is brought by two moves where one brings it.
    key_decay = 0.0 if WAYS[name].key_moves == 2 else 0.9
    ours, published = build_both(WAYS[name], key_decay=key_decay)
    losses = take_both(ours, published, 5)
    assert len({round(loss, 3) for loss, _ in losses}) == 5
    for loss, other in losses:
        assert loss == pytest.approx(other, rel=1e-5)
    assert largest_difference(ours, published) < 1e-6
    probabilities = published.queue.logits.softmax(1)
    confident = probabilities @ probabilities.T >= ours.method.config.threshold
    assert confident.any() and not confident.all()


def test_a_queue_with_graphs_gives_the_same_loss(fresh_processes):
    ours, published = build_both(Way(keeps_graphs=True), key_decay=0.0)
    for loss, other in take_both(ours, published, 5):
        assert loss == pytest.approx(other, rel=1e-5)


def test_two_moves_of_the_key_encoder_are_seen_from_the_second_step_on(fresh_processes):
    """The comparison above can fail: m is 0.25 in effect where 0.5 is meant."""
    ours, published = build_both(WAYS["published"], key_decay=0.5)
    first, second = take_both(ours, published, 2)
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert second[0] != pytest.approx(second[1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("published", 6), ("weak_view_once", 5), ("key_encoder_once", 5),
     ("views_in_one_pass", 5), ("channels_last", 5)],
)  # fmt: skip
def test_forwards_of_each_way(name, expected, fresh_processes):
    ours, published = build_both(WAYS[name])
    views, labels = step.draw_batch(BATCH_SIZE, 16, ours.device)
    counts = [
        step.count_forwards(partial(take, views, labels, 0), take.encoders, BATCH_SIZE)
        for take in (ours, published)
    ]
    assert counts == [5, expected]
    # The hooks are gone.
    assert not any(encoder._forward_pre_hooks for encoder in ours.encoders)


@pytest.mark.parametrize("name", WAYS)
def test_weights_lie_as_the_way_says(name, fresh_processes):
    _, published = build_both(WAYS[name])
    for layer in published.network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            assert layer.weight.is_contiguous(memory_format=WAYS[name].layout)


@pytest.mark.parametrize(("stem", "side"), [("full_resolution", 32), ("imagenet", 8)])
def test_the_stem_keeps_the_resolution_or_not(stem, side):
    network = step.same_network(0, Projector(8, 4), stem)
    sizes = []
    network.encoder.layer1.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))
    assert network(torch.zeros(2, 3, 32, 32)).logits.shape == (2, step.NUM_CLASSES)
    assert sizes == [side]


def test_our_step_leaves_no_memory_behind_and_attached_graphs_do(fresh_processes):
    ours, attached = build_both(Way(keeps_graphs=True))
    detached = build_both(Way())[1]
    views, labels = step.draw_batch(BATCH_SIZE, 16, ours.device)
    kilobytes = [
        step.growth(partial(take, views, labels), 80) for take in (ours, detached, attached)
    ]
    assert kilobytes[0] < 5 and kilobytes[1] < 5 and kilobytes[2] > 20


def test_memory_that_is_held_is_counted():
    before = step.bytes_in_use()
    held = torch.zeros(3_000_000)
    assert 11.9e6 < step.bytes_in_use() - before < 13e6
    assert step.growth(lambda _: None, 2) < 1e3
    del held


@pytest.mark.slow
def test_a_small_measurement_ends_with_its_figures(capsys, fresh_processes):
    options = ["--image-size", "16", "--batch-size", "4", "--rounds", "1", "--steps", "4"]
    assert step.main([*options, "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = {k: v["is"] if isinstance(v, dict) else v for k, v in figures.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert all(value > 0 for name, value in values.items() if "kilobytes" not in name)
    assert (values["forwards_published"], values["forwards_ours"]) == (6, 5)
    assert figures["float32_published_over_ours"]["at_least"] == 1.25
    has_goal = isinstance(figures["bf16_published_float32_over_ours"], dict)
    assert has_goal == torch.cpu._is_amx_tile_supported()


@pytest.mark.parametrize("size", ["0", "7", "18"])
def test_a_batch_that_does_not_go_into_the_queue_is_refused(size, capsys):
    with pytest.raises(SystemExit):
        step.main(["--batch-size", size])
    assert f"--batch-size: {size} is no even divisor of 480" in capsys.readouterr().err
