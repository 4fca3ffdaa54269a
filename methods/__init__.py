"""What is learned: the interface, the networks, and one file for each method."""

from methods.coteaching import CoTeaching
from methods.cross_entropy import CrossEntropy
from methods.dividemix import DivideMix
from methods.elr import ELR, ELRPlus
from methods.gce import GCE
from methods.method import Method
from methods.qmix import QMix
from methods.sscl import SSCL

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "gce": GCE,
    "coteaching": CoTeaching,
    "elr": ELR,
    "elr_plus": ELRPlus,
    "dividemix": DivideMix,
    "sscl": SSCL,
    "qmix": QMix,
}
