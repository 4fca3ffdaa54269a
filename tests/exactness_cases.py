"""What tests of many processes train: the tiny setting of each method, and what else matters."""

import torch
from method_settings import METHOD_SETTINGS, write_config

CASES = {method: (method, {}) for method in METHOD_SETTINGS} | {
    # Samples come up several times an epoch, and so do their rows of the ledger.
    "class_balanced": ("elr", {"data": {"sampler": "class_balanced"}}),
    # The separation reads what steps have written.
    "qmix_steps": ("qmix", {"method": {"statistics": "steps"}}),
}


def write_cases(folder, cases=tuple(CASES), /, **sections):
    """Write each case's configuration into a folder of its own; returns the folders."""
    folders = [folder / case for case in cases]
    for case, of_case in zip(cases, folders, strict=True):
        of_case.mkdir()
        method, changed = CASES[case]
        write_config(of_case, method, run={"dir": str(of_case / "run")}, **changed, **sections)
    return folders


def relative_difference(ours, theirs):
    """Of the same tensors by name, all together, relative to the size of the second."""
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name].double(), tensor.double()) for name, tensor in theirs.items()]
    difference = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return (difference / torch.stack([b.norm() for _, b in pairs]).norm()).item()
