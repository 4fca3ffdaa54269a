"""What every method must keep to; a new one inherits these tests by its row of METHOD_SETTINGS."""

import functools
from typing import get_args

import numpy as np
import pytest
import torch
from method_settings import METHOD_SETTINGS, write_config
from tiny_runs import make_config, make_trainer, train

from data.views import Views
from engine.config import ConfigError, load_config
from engine.ledger import Column
from engine.runtime import start_processes
from engine.task import Task
from engine.trainer import Trainer
from launcher.settings import Config
from methods import METHODS
from methods.method import Problem
from methods.networks import Network, build_network

FIELDS = [
    (method, name)
    for method in METHOD_SETTINGS
    for name in METHODS[method].Config.model_fields
    if name != "name"
]
NUM_EPOCHS = 3  # of the tiny setting
# Some 48 training samples a class, so that each has a separation of its own.
MORE_SAMPLES = {"data": {"synthetic": {"num_train": 320, "num_test": 8}}}


def images(num_images=6):
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trainer(request, fresh_processes):
    """A trainer of the method that the test is parametrised by."""
    return make_trainer(make_config(request.getfixturevalue("method")))


def run_epochs(trainer):
    """Take the epochs one by one; yields after each."""
    for epoch in range(NUM_EPOCHS):
        trainer.prepare_epoch(epoch)
        trainer.steps_done = 0
        trainer.train_epoch(epoch)
        trainer.ledger.synchronise()
        yield epoch


# -- the table -------------------------------------------------------------------------------------


def test_every_method_is_in_the_table():
    assert METHOD_SETTINGS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_methods_are_told_apart_by_name(method):
    config = make_config(method).method
    assert config.name == method
    assert type(config) is METHODS[method].Config


@pytest.mark.parametrize(("method", "name"), FIELDS)
def test_every_key_says_what_it_does(method, name):
    assert METHODS[method].Config.model_fields[name].description


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path, method):
    path = write_config(tmp_path, method)
    key = next(name for other, name in FIELDS if other == method)
    with pytest.raises(ConfigError) as caught:
        load_config(Config, path, [f"method.{key}x=1"])
    assert f"method.{key}x" in str(caught.value) and key in str(caught.value).split(f"{key}x")[1]


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_keys_of_other_methods_are_refused(tmp_path, method):
    own = METHODS[method].Config.model_fields
    others = [key for other, key in FIELDS if other != method and key not in own]
    path = write_config(tmp_path, method)
    with pytest.raises(ConfigError) as caught:
        load_config(Config, path, [f"method.{key}=1" for key in others])
    for key in others:
        assert f"method.{key}: " in str(caught.value)


def changed(method, name):
    """Another valid value of a key."""
    value = getattr(make_config(method).method, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    options = get_args(METHODS[method].Config.model_fields[name].annotation)
    return next(option for option in options if option != value)


@pytest.fixture(scope="module")
def trained_weights():
    """Weights of the unchanged setting by method, trained when first asked for."""
    known = {}

    def get(method):
        if method not in known:
            known[method] = train(make_config(method, **MORE_SAMPLES))[0].method.state_dict()
        return known[method]

    return get


def equal_weights(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("method", "name"), FIELDS)
def test_every_key_changes_what_is_learned(fresh_processes, trained_weights, method, name):
    config = make_config(method, method={name: changed(method, name)}, **MORE_SAMPLES)
    trainer, _ = train(config)
    fresh_processes()
    assert not equal_weights(trainer.method.state_dict(), trained_weights(method))


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_nothing_else_changes_what_is_learned(fresh_processes, trained_weights, method):
    """The control of the test above: the same setting learns the same to the last bit."""
    trainer, _ = train(make_config(method, **MORE_SAMPLES))
    fresh_processes()
    assert equal_weights(trainer.method.state_dict(), trained_weights(method))


# -- phases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_every_trained_parameter_has_a_gradient_in_every_phase(trainer, method):
    names = {name for name, p in trainer.method.named_parameters() if p.requires_grad}
    ever_moved = set()
    for epoch in run_epochs(trainer):
        gradients = {name: p.grad for name, p in trainer.method.named_parameters()}
        assert {name for name in names if gradients[name] is None} == set(), epoch
        assert all(gradients[name].isfinite().all() for name in names)
        ever_moved |= {name for name in names if gradients[name].abs().sum() > 0}
    assert names - ever_moved == set()


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_nothing_else_gets_a_gradient(trainer, method):
    for _ in run_epochs(trainer):
        for name, parameter in trainer.method.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name


def assert_passes_are_those_announced(trainer):
    """Passes of images through networks, counted, are those of ``forwards_per_image``."""
    passes = {"with_gradient": 0, "without": 0, "survey": 0}

    def count(module, inputs, output):
        in_step = "with_gradient" if torch.is_grad_enabled() else "without"
        passes[in_step if trainer.method.training else "survey"] += len(inputs[0])

    for module in trainer.method.modules():
        if isinstance(module, Network):
            module.register_forward_hook(count)
    num_trained = trainer.steps_per_epoch * trainer.optim.batch_size
    for epoch in run_epochs(trainer):
        counted = {
            name: count / (len(trainer.task.train_ids) if name == "survey" else num_trained)
            for name, count in passes.items()
        }
        assert counted == trainer.method.forwards_per_image(epoch)
        passes.update(dict.fromkeys(passes, 0))


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_steps_ask_for_no_more_passes_than_they_announce(trainer, method):
    assert_passes_are_those_announced(trainer)


def test_statistics_of_steps_take_one_survey_in_the_whole_run(fresh_processes):
    trainer = make_trainer(make_config("qmix", method={"statistics": "steps"}))
    assert_passes_are_those_announced(trainer)
    surveys = [trainer.method.forwards_per_image(epoch)["survey"] for epoch in range(NUM_EPOCHS)]
    assert NUM_EPOCHS > 2 and surveys == [0, 2] + [0] * (NUM_EPOCHS - 2)


# With gradient and without, of each image that is trained on, and in the survey of all images, in
# the first epoch and in the last. Of N images the README's formulas are N times these.
PASSES = {
    "cross_entropy": [(1, 0, 0), (1, 0, 0)],
    "gce": [(1, 0, 0), (1, 0, 0)],
    "coteaching": [(2, 0, 0), (2, 0, 0)],
    "elr": [(1, 0, 0), (1, 0, 0)],
    "elr_plus": [(2, 2, 0), (2, 2, 0)],
    "dividemix": [(2, 0, 0), (4, 4, 2)],
    "sscl": [(3, 2, 0), (3, 2, 0)],
    "qmix": [(2, 0, 0), (2, 4, 2)],
}


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_passes_are_those_of_the_readme(trainer, method):
    """What steps do is counted by the test above."""
    announced = [trainer.method.forwards_per_image(epoch) for epoch in (0, NUM_EPOCHS - 1)]
    names = ("with_gradient", "without", "survey")
    assert [tuple(passes[name] for name in names) for passes in announced] == PASSES[method]


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_terms_are_the_same_in_all_batches_of_an_epoch(trainer, method):
    """Ranks reduce them by place, and the record has one line of names a phase."""
    seen = []
    losses = trainer.method.losses
    trainer.method.losses = lambda batch: seen.append(losses(batch)) or seen[-1]
    for _ in run_epochs(trainer):
        assert len({tuple(terms) for terms in seen}) == 1
        for term in (term for terms in seen for term in terms.values()):
            assert term.total.shape == term.count.shape == ()
            assert term.total.requires_grad and not term.count.requires_grad
        seen.clear()


# -- predictions and the ledger --------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_predictions_are_distributions(trainer, method):
    with torch.no_grad():
        probabilities = trainer.method.eval()(images())
    assert probabilities.shape[1:] == (6, trainer.task.num_classes)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:2]))


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_a_prediction_depends_on_its_own_image(trainer, method):
    method = trainer.method.eval()
    with torch.no_grad():
        torch.testing.assert_close(method(images())[:, 2:3], method(images()[2:3]))


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_the_columns_say_what_they_hold(trainer, method):
    columns = trainer.method.columns()
    assert all(isinstance(column, Column) and column.meaning for column in columns.values())
    assert "label" not in columns
    if "group" in columns:  # which the record's separation metrics read
        assert {"posterior"} <= columns.keys()


class Colours:
    """Noisy images of 16 px, each with the channel of its class the brightest."""

    def __init__(self, num_samples):
        rng = np.random.default_rng(0)
        self.true_labels = rng.integers(0, 3, num_samples)
        self.images = rng.integers(0, 200, (num_samples, 3, 16, 16))
        self.images[np.arange(num_samples), self.true_labels] += 50

    def load(self, batches):
        for ids in batches:
            yield torch.from_numpy(ids), torch.from_numpy(self.images[ids].astype(np.uint8))


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_easy_images_are_learned_in_spite_of_wrong_labels(fresh_processes, method):
    first_phase = ("warmup_epochs", "promotion_epoch")
    long_enough = {key: 8 for key in first_phase if (method, key) in FIELDS}
    # One group: with one for each channel, normalisation would take the colours away.
    config = make_config(method, method=long_enough, optim={"lr": 0.01}, model={"groups": 1})
    num_samples, num_epochs = 120, 12
    colours, ids = Colours(num_samples), np.arange(num_samples)
    labels = torch.from_numpy(colours.true_labels.copy())
    labels[:24] = (labels[:24] + 1) % 3
    views = Views(config.views, 0)
    task = Task(labels, ids, {}, None, colours.load, views, 0, num_epochs, 3)
    build = functools.partial(build_colour_network, config.model)
    problem = Problem(3, labels, torch.from_numpy(ids), num_epochs, 16, 0, build)
    trainer = Trainer(
        start_processes(config.runtime), METHODS[method](config.method, problem), task,
        config.optim, config.evaluation,
    )  # fmt: skip
    trainer.fit(lambda epoch, metrics: None)
    predicted = trainer.predict(ids).argmax(-1)
    assert (predicted == colours.true_labels).mean() > 0.95
    assert (predicted == labels.numpy()).mean() < 0.85


def build_colour_network(config, index, projector):
    return build_network(config, 3, seed=0, index=index, projector=projector)
