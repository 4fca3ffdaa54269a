"""Reading what runs leave behind, and comparing it."""

import json

import pytest
import safetensors.torch
import torch


def read_record(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def untimed(lines):
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_equal_trees(ours, theirs):
    """Nested containers are equal, their tensors bit by bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal_trees(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        for our_item, their_item in zip(ours, theirs, strict=True):
            assert_equal_trees(our_item, their_item)
    else:
        assert ours == theirs


def read_checkpoint(folder, epochs_done=3):
    path = folder / "checkpoints" / f"epoch-{epochs_done:04}"
    return {
        "method": safetensors.torch.load_file(path / "method.safetensors"),
        "ledger": safetensors.torch.load_file(path / "ledger.safetensors"),
        "optimizer": torch.load(path / "optimizer.pt", weights_only=True),
    }
