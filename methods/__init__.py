"""What is learned: the interface, the networks, and one file for each method."""

from methods.cross_entropy import CrossEntropy
from methods.method import Method
from methods.qmix import QMix

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "qmix": QMix,
}
