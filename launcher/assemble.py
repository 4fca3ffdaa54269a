"""From a configuration to the parts of a run."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.corrections import apply_corrections
from data.loader import DegradedImages, ImageDataset, SampleLoader, hold_in_memory
from data.manifest import LEFT_OUT, SPLIT_NAMES, TEST, TRAIN, UNKNOWN, VALIDATION
from data.noise import CORRECT, MIS_H, MIS_L, InjectedNoise, inject
from data.sources import Source, load_source
from data.views import Views
from engine import collectives
from engine.audit.findings import Samples
from engine.plan import num_steps
from engine.reports.run_folder import RunFacts
from engine.task import Task
from launcher.settings import Config
from methods import METHODS
from methods.method import Method, Problem
from methods.networks import Network, Projector, build_network
from methods.weights import ModelError

__all__ = [
    "NoisyData", "build_method", "build_task", "build_trained_method", "describe_samples",
    "load_noisy_data", "run_facts",
]  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoisyData:
    """A data set with the noise of the configuration injected.

    Attributes:
        source: As it was read.
        labels: (N,) int64 given labels, noise and corrections included; those of the test set are
            untouched, those of samples left out are -1.
        groups: (N,) uint8 true group of each sample; None where the truth is unknown.
        num_corrected: Number of samples to which corrections gave another label.
    """

    source: Source
    labels: NDArray[np.int64]
    groups: NDArray[np.uint8] | None
    num_corrected: int


def load_noisy_data(config: Config) -> NoisyData:
    """Read the data set, inject noise into training and validation samples, apply corrections.

    The validation set is as noisy as the training set, as it would be in use.

    Raises:
        DataError: The data set is not as it must be.
    """
    source = load_source(config.data, config.run.seed)
    manifest, noise = source.manifest, config.noise
    labels, groups = manifest.labels.copy(), np.full(len(manifest), CORRECT, dtype=np.uint8)
    injects = noise.mis_h > 0 or noise.mis_l > 0 or noise.kind == "matrix"
    if injects:
        # As one set: who validates depends on the seed of the run, and their noise must not.
        ids = np.union1d(manifest.where(TRAIN), manifest.where(VALIDATION))
        injected = _inject(source, ids, config)
        labels[ids], groups[ids] = injected.noisy_labels, injected.groups
    # People decide on what they were shown, which is the labels with their noise.
    shown = labels
    manifest, labels = apply_corrections(config.data.correction_files, manifest, shown)
    num_corrected = int(((labels != shown) & (manifest.split != LEFT_OUT)).sum())
    # Where the truth is known it decides; elsewhere the labels as they were read stand for it.
    known = manifest.true_labels != UNKNOWN
    truth = np.where(known, manifest.true_labels, manifest.labels)
    by_truth = np.where(labels != truth, MIS_H, CORRECT).astype(np.uint8)
    groups = np.where(groups == MIS_L, groups, by_truth)
    is_known = injects or bool(known[manifest.where(TRAIN)].all())
    source = replace(source, manifest=manifest)
    # So that a run that goes on notices if other images are left out by then.
    labels[manifest.split == LEFT_OUT] = UNKNOWN
    return NoisyData(source, labels, groups if is_known else None, num_corrected)


def _inject(source: Source, ids: NDArray[np.int64], config: Config) -> InjectedNoise:
    """Noise of some samples; images are looked at only where noise depends on them."""
    manifest = source.manifest
    quality = manifest.quality[ids]
    features = None
    if config.noise.kind == "instance":
        features = np.stack([_thumbnail(source.reader.read(int(index))) for index in ids])
    return inject(
        manifest.labels[ids], manifest.num_classes, config.noise, _noise_seed(config),
        sample_ids=ids, quality=None if (quality == UNKNOWN).all() else quality, features=features,
    )  # fmt: skip


def _noise_seed(config: Config) -> int:
    return config.run.seed if config.noise.seed is None else config.noise.seed


def _thumbnail(image: NDArray[np.uint8], side: int = 8) -> NDArray[np.float64]:
    """Mean colours of an image on a coarse grid, as a vector in [0, 1]."""
    blocks = image.shape[0] // side
    cut = image[: blocks * side, : blocks * side].reshape(side, blocks, side, blocks, 3)
    return cut.mean((1, 3)).ravel() / 255


def describe_samples(data: NoisyData) -> Samples:
    """What people know the samples by."""
    manifest = data.source.manifest
    return Samples(manifest.names, manifest.class_names, manifest.quality)


def build_task(config: Config, data: NoisyData, *, pin_memory: bool) -> Task:
    """The samples, images and views that a run trains on."""
    manifest, reader = data.source.manifest, data.source.reader
    if data.groups is not None and (data.groups == MIS_L).any() and config.noise.mis_l > 0:
        reader = DegradedImages(
            reader, data.groups == MIS_L, config.noise.severity, _noise_seed(config)
        )
    if config.data.cache == "memory":
        reader = hold_in_memory(
            reader, config.data.num_workers, show_progress=collectives.rank() == 0
        )
    evaluated = {"validation": manifest.where(VALIDATION), "eval": manifest.where(TEST)}
    num_workers = config.data.num_workers if config.data.cache == "none" else 0
    return Task(
        labels=torch.from_numpy(data.labels),
        train_ids=manifest.where(TRAIN),
        evaluation_ids={name: ids for name, ids in evaluated.items() if len(ids)},
        true_groups=data.groups,
        loader=SampleLoader(ImageDataset(reader), num_workers, pin_memory=pin_memory),
        views=Views(config.views, config.run.seed),
        seed=config.run.seed,
        num_epochs=config.run.epochs,
        num_classes=manifest.num_classes,
        class_balanced=config.data.sampler == "class_balanced",
    )


def build_method(config: Config, data: NoisyData) -> Method:
    """The method with its networks, before it is wrapped.

    Raises:
        ModelError: There are no statistics to freeze, or see `build_network`.
        MethodError: The section ``method`` does not go with the others.
    """
    if config.model.norm == "frozen" and config.model.weights is None:
        raise ModelError(
            "model.norm: frozen keeps the statistics of pre-trained weights, and model.weights is "
            "not set; take group, or name a file of weights"
        )
    manifest = data.source.manifest
    labels, train_ids = torch.from_numpy(data.labels), torch.from_numpy(manifest.where(TRAIN))
    method = _build(config, manifest.num_classes, labels, train_ids)
    if collectives.rank() == 0:
        for warning in _doubts(config, method):
            logger.warning(warning)
    return method


def _doubts(config: Config, method: Method) -> Iterator[str]:
    """What is allowed and hardly meant, in a line each.

    A short trial is as good as any, but must not be taken for a run of the method.
    """
    epochs, optim, model = config.run.epochs, config.optim, config.model
    divides = any(method.separates(epoch) for epoch in range(epochs))
    if "group" in method.columns() and not divides:
        yield (
            f"run.epochs: {epochs}, and {config.method.name} divides the samples only after its "
            "warm-up (method.warmup_epochs or method.promotion_epoch): this run is the warm-up "
            "alone"
        )
    steps = epochs * num_steps(len(method.problem.train_ids), optim.batch_size)
    if optim.lr_warmup_steps > steps:
        yield (
            f"optim.lr_warmup_steps: {optim.lr_warmup_steps}, and the run has {steps} steps: the "
            "learning rate never reaches optim.lr"
        )
    for key, has_effect in {
        "width": model.backbone == "small_resnet",
        "blocks": model.backbone == "small_resnet",
        "groups": model.norm in ("group", "frozen")
        and any(isinstance(module, nn.GroupNorm) for module in method.modules()),
    }.items():
        value = getattr(model, key)
        if not has_effect and value != type(model).model_fields[key].default:
            yield (
                f"model.{key}: {value} has no effect with backbone {model.backbone} and norm "
                f"{model.norm}"
            )


def build_trained_method(config: Config, num_classes: int) -> Method:
    """The method for weights that are loaded afterwards; it can predict, and not be trained.

    The data set that it was trained on is not needed: one sample of each class stands for it.
    """
    model = config.model.for_prediction()
    one_of_each = torch.arange(num_classes)
    return _build(config.model_copy(update={"model": model}), num_classes, one_of_each, one_of_each)


def _build(config: Config, num_classes: int, labels: Tensor, train_ids: Tensor) -> Method:
    def build(index: int, projector: Projector | None) -> Network:
        return build_network(
            config.model, num_classes, seed=config.run.seed, index=index, projector=projector
        )

    problem = Problem(
        num_classes=num_classes,
        labels=labels,
        train_ids=train_ids,
        num_epochs=config.run.epochs,
        batch_size=config.optim.batch_size,
        seed=config.run.seed,
        build_network=build,
        class_balanced=config.data.sampler == "class_balanced",
    )
    method = METHODS[config.method.name](config.method, problem)
    if config.model.cuda_graphs:
        # A call is a step or a batch: what graphs gave for the one before may be written over.
        method.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    return method


def run_facts(
    data: NoisyData, num_processes: int | None = None, versions: Mapping[str, str] | None = None
) -> RunFacts:
    """What a run's folder says of its data and execution besides the configuration."""
    manifest = data.source.manifest
    counts = np.bincount(manifest.split, minlength=len(SPLIT_NAMES)).tolist()
    num_test = np.bincount(data.labels[manifest.where(TEST)], minlength=manifest.num_classes)
    return RunFacts(
        num_processes=num_processes,
        class_names=tuple(manifest.class_names),
        num_samples=dict(zip(SPLIT_NAMES, counts[: len(SPLIT_NAMES)], strict=True)),
        num_test_images=tuple(num_test.tolist()),
        versions=dict(versions or {}),
    )
