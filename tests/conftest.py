import os

import pytest
import torch
from accelerate.state import AcceleratorState

pytest_plugins = ["browser"]


def pytest_configure(config):
    """Hide GPUs, but from their own tests: all others ask for the same bits on any machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that processes that share the files end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums are then taken in one order, and tests do not fight for the processors."""
    torch.set_num_threads(1)


@pytest.fixture
def fresh_processes():
    """Lets a test start a run in its own process as if it were the first one there.

    The fixture's value does so once more, for a test that starts several.
    """

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)

    forget()
    yield forget
    forget()
