import pytest
import torch

from data.turns import Turn, known_turns
from data.views import ViewConfig

NOTHING = ViewConfig()
BOTH = ViewConfig(horizontal_flip=0.5, vertical_flip=0.5, rotation=15)


def draw():
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("trained_on", "expected"),
    [
        ([NOTHING], ["plain"]),
        ([], ["plain"]),
        ([ViewConfig(horizontal_flip=0.1)], ["plain", "left-right"]),
        ([ViewConfig(vertical_flip=1)], ["plain", "up-down"]),
        ([BOTH], ["plain", "left-right", "up-down", "half"]),
        ([ViewConfig(rotation=90)], ["plain", "quarter", "three quarters"]),
        ([ViewConfig(rotation=180)], ["plain", "half", "quarter", "three quarters"]),
        # The networks of a run know what any of its views does.
        ([NOTHING, ViewConfig(horizontal_flip=0.1)], ["plain", "left-right"]),
    ],
)
def test_views_are_those_that_the_run_knows(trained_on, expected):
    images = draw()
    changes = {
        "plain": images,
        "left-right": images.flip(3),
        "up-down": images.flip(2),
        "half": images.flip(2, 3),
        "quarter": images.transpose(2, 3).flip(2),
        "three quarters": images.transpose(2, 3).flip(3),
    }
    turns = known_turns(trained_on)
    assert len(turns) == len(expected)
    for turn, name in zip(turns, expected, strict=True):
        assert torch.equal(turn(images), changes[name]), name


def test_all_eight_differ():
    free = ViewConfig(horizontal_flip=0.5, vertical_flip=0.5, rotation=180)
    turned = [turn(draw()) for turn in known_turns([free])]
    assert len({image.numpy().tobytes() for image in turned}) == 8
    assert known_turns([free])[0] == Turn()
