"""The grid of the robustness benchmark: beds x noises x methods x seeds.

A bed is what a method is tried on: the data set, views, model, optimiser and number of epochs of
``configs/cross_entropy_<bed>.yaml``. A cell of the grid replaces the file's sections ``noise`` and
``method``, so all methods have the same budget on a bed. ``robustness_methods.yaml`` holds the
settings of the methods.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.sources import settle
from engine.config import load_config
from engine.strict_yaml import parse_yaml
from launcher.settings import Config

__all__ = [
    "BEDS", "DECIDED_BY_CELL", "METHODS", "NOISES", "REAL_IMAGES", "ROOT", "SEEDS", "Bed", "Cell",
    "select",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
REAL_IMAGES = "MEDNOISE_REALDATA"


class Bed(NamedTuple):
    """What a method is tried on.

    Attributes:
        headline: The test metric that its main table shows and that chooses its best epochs:
            kappa for grades, balanced accuracy for classes without order and of unequal sizes.
        num_classes: C.
        has_files: Whether its images lie in a folder of its name below ``$MEDNOISE_REALDATA``.
    """

    headline: str
    num_classes: int
    has_files: bool = False


# In the order of work, as ORDER_OF_NOISES: what is wanted most comes first.
BEDS = {
    "digits": Bed("accuracy", 10),
    "synthetic": Bed("kappa", 5),
    "busi": Bed("balanced_accuracy", 3, has_files=True),
    "ham10000": Bed("balanced_accuracy", 7, has_files=True),
    "deepdrid": Bed("kappa", 5, has_files=True),
}
# Name -> (kind, share of wrong labels, share of spoiled images), in the order of the tables'
# columns. Kind pair_flip turns each class into the next one and the last into the first.
NOISES = {
    "clean": ("none", 0.0, 0.0),
    "sym20": ("symmetric", 0.2, 0.0),
    "sym40": ("symmetric", 0.4, 0.0),
    "sym60": ("symmetric", 0.6, 0.0),
    "asym40": ("pair_flip", 0.4, 0.0),
    "mixed": ("symmetric", 0.4, 0.15),
}
ORDER_OF_NOISES = ("sym40", "asym40", "mixed", "clean", "sym20", "sym60")
SEEDS = (0, 1, 2)
# Method -> "all" or a bed -> settings; what is given for a bed wins.
METHODS: dict[str, dict[str, dict[str, Any]]] = parse_yaml(
    Path(__file__).with_name("robustness_methods.yaml").read_text(encoding="utf-8")
).tree
# Co-teaching drops the share of samples with the largest losses that its authors assume to be known
# as the rate of wrong labels: here what the noise hits, and a little where it hits nothing.
KNOWS_THE_RATE = "coteaching"
LEAST_FORGET_RATE = 0.05
# Keys whose values a cell's name promises.
DECIDED_BY_CELL = (
    "run", "run.dir", "run.seed", "noise", "noise.kind", "noise.mis_h", "noise.mis_l",
    "noise.matrix", "method", "method.name",
)  # fmt: skip


class Cell(NamedTuple):
    """One run of the grid."""

    bed: str
    noise: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.bed}-{self.noise}-{self.method}-seed{self.seed}"

    def compose(self, out: Path, settings: Sequence[str] = ()) -> Config:
        """Its whole configuration, as its run keeps it.

        Args:
            out: Folder of all runs.
            settings: ``section.key=value``, winning over the bed's file and the method's settings.

        Raises:
            ConfigError: The bed's file, the method's settings or ``settings`` are faulty.
            DataError: ``data.prepared`` is no prepared data set, or not that which is asked for.
            KeyError: The bed has files and ``MEDNOISE_REALDATA`` is not set.
        """
        sections = {
            "noise": self.noise_section(),
            "method": self.method_section(),
            "run.dir": str(out / str(self)),
            "run.seed": self.seed,
            # Its tables are made from metrics.jsonl.
            "tracking": {"wandb": "off", "figures_every_epochs": 0},
        }
        if BEDS[self.bed].has_files:
            sections["data.root"] = str(Path(os.environ[REAL_IMAGES], self.bed))
        # JSON is YAML, and quotes what paths may hold.
        overrides = [
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sections.items()
        ]
        path = CONFIGS / f"cross_entropy_{self.bed}.yaml"
        config = load_config(Config, path, [*overrides, *settings])
        return config.model_copy(update={"data": settle(config.data)})

    def noise_section(self) -> dict[str, Any]:
        """Its section ``noise``."""
        kind, mis_h, mis_l = NOISES[self.noise]
        if kind != "pair_flip":
            return {"kind": kind, "mis_h": mis_h, "mis_l": mis_l}
        num_classes = BEDS[self.bed].num_classes
        rows = [[0.0] * num_classes for _ in range(num_classes)]
        for label, row in enumerate(rows):
            row[label], row[(label + 1) % num_classes] = 1 - mis_h, mis_h
        return {"kind": "matrix", "matrix": rows}

    def method_section(self) -> dict[str, Any]:
        """Its section ``method``."""
        settings = METHODS[self.method]
        section = {"name": self.method} | settings.get("all", {}) | settings.get(self.bed, {})
        if self.method == KNOWS_THE_RATE:
            _, mis_h, mis_l = NOISES[self.noise]
            section.setdefault("forget_rate", max(LEAST_FORGET_RATE, mis_h + mis_l))
        return section


def select(only: Sequence[str]) -> list[Cell]:
    """The cells that words such as ``digits``, ``sym40``, ``qmix`` and ``seed0`` choose.

    Words of one kind add up; a kind without any word is not restricted. The order is that of the
    work: by bed, noise and seed, so that what is cut off has compared all methods on something.

    Raises:
        ValueError: A word names nothing of the grid.
    """
    seeds = tuple(f"seed{seed}" for seed in SEEDS)
    kinds = [tuple(BEDS), ORDER_OF_NOISES, seeds, tuple(METHODS)]
    known = list(itertools.chain(*kinds))
    unknown = [word for word in only if word not in known]
    if unknown:
        raise ValueError(f"--only: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    chosen = [[word for word in kind if word in only] or kind for kind in kinds]
    return [
        Cell(bed, noise, method, int(seed.removeprefix("seed")))
        for bed, noise, seed, method in itertools.product(*chosen)
    ]
