"""Trainers of the published settings on drawn images, and the parts of their steps."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate.state import AcceleratorState
from torch import Tensor

from engine.config import load_config
from engine.plan import global_batches
from engine.runtime import start_processes
from engine.terms import global_loss
from engine.trainer import Trainer
from launcher.assemble import build_method, build_task, load_noisy_data
from launcher.settings import Config
from methods.method import Batch

__all__ = ["EPOCH", "SETTINGS", "build", "first_batch", "make_views", "take_step", "train_epoch"]

ROOT = Path(__file__).resolve().parents[1]

# The published setting of each method, and what is past its warm-up from the second epoch on.
SETTINGS = {
    "cross_entropy": ("cross_entropy_eyepacs.yaml", []),
    "qmix": ("qmix_eyepacs.yaml", ["method.warmup_epochs=1"]),
    "sscl": ("sscl_isic2019.yaml", ["method.promotion_epoch=1", "data.sampler=shuffled"]),
}
EPOCH = 1


def build(
    name: str,
    num_steps: int,
    settings: Sequence[str],
    draw: Callable[[int], Sequence[str]] | None = None,
) -> Trainer:
    """A trainer at the start of its second epoch, of so many steps.

    Args:
        name: A method of ``SETTINGS``.
        num_steps: Steps of an epoch.
        settings: ``section.key=value``, winning over the published ones.
        draw: Makes a data set of so many training images and returns the settings that name it;
            None = images drawn into memory.
    """
    file, past_warmup = SETTINGS[name]
    drawn = [
        "data.source=synthetic", "data.root=null", "data.cache=memory", "data.num_workers=0",
        "data.validation_fraction=0", "model.norm=batch", "run.epochs=3",
    ]  # fmt: skip
    path = ROOT / "configs" / file
    overrides = [*drawn, *past_warmup, *settings]
    batch_size = load_config(Config, path, overrides).optim.batch_size
    num_images = batch_size * num_steps
    images = [f"data.synthetic={{num_train: {num_images}, num_test: 2}}"]
    config = load_config(Config, path, [*overrides, *(draw(num_images) if draw else images)])
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, data = start_processes(config.runtime), load_noisy_data(config)
    task = build_task(config, data, pin_memory=accelerator.device.type == "cuda")
    method = build_method(config, data)
    trainer = Trainer(accelerator, method, task, config.optim, config.evaluation)
    trainer.prepare_epoch(0)
    trainer.train_epoch(0)
    trainer.ledger.synchronise()
    trainer.epochs_done, trainer.steps_done = EPOCH, 0
    trainer.prepare_epoch(EPOCH)
    return trainer


def train_epoch(trainer: Trainer) -> None:
    """The steps of the epoch, which may be taken again and again."""
    trainer.steps_done = 0
    trainer.train_epoch(EPOCH)


def first_batch(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Ids (B,) and uint8 images on the device of the epoch's first batch."""
    task = trainer.task
    batches = global_batches(task.seed, EPOCH, task.train_ids, trainer.optim.batch_size)
    ids, images = next(iter(task.loader(batches[:1])))
    return ids, images.to(trainer.accelerator.device)


def make_views(trainer: Trainer, ids: Tensor, images: Tensor) -> dict[str, Tensor]:
    """All views of a batch that a step of the method needs."""
    return {
        name: trainer.task.views(images, ids, EPOCH, view.number, view.kind)
        for name, view in trainer.method.views(EPOCH).items()
    }


def take_step(trainer: Trainer, ids: Tensor, views: Mapping[str, Tensor]) -> None:
    """Forward, backward and a step of the optimiser that moves nothing."""
    rows = trainer.ledger.rows(ids, trainer.accelerator.device)
    step = EPOCH * trainer.steps_per_epoch
    trainer.stepper.wrapped.train()
    terms = trainer.stepper.wrapped(Batch(ids.to(rows["label"].device), views, rows, EPOCH, step))
    loss = global_loss(terms, ids)
    trainer.stepper.step(loss.value, 0.0, loss.require_finite)
