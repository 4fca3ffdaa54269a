import numpy as np
import pytest
import torch
from method_settings import METHOD_SETTINGS
from PIL import Image
from tiny_runs import make_config, noisy_data

from data.manifest import TEST, TRAIN, VALIDATION
from data.noise import CORRECT, MIS_H, MIS_L
from engine.config import differences
from launcher.assemble import build_method, build_task, load_noisy_data
from launcher.settings import MAY_CHANGE_ON_RESUME
from methods.weights import ModelError

SPLITS = {"train": TRAIN, "validation": VALIDATION}


def load(**sections):
    return noisy_data(make_config("cross_entropy", **sections))


def images(config, data):
    """All images as a run trains on them."""
    task = build_task(config, data, pin_memory=False)
    ids = np.arange(len(data.source.manifest))
    return torch.cat([batch for _, batch in task.loader([ids])])


@pytest.mark.parametrize("split", SPLITS)
def test_training_and_validation_are_equally_noisy(split):
    data = load(data={"synthetic": {"num_train": 300, "num_test": 10}})
    ids = data.source.manifest.where(SPLITS[split])
    shares = np.bincount(data.groups[ids], minlength=3) / len(ids)
    # 30 % Mis-H and 10 % Mis-L of both together; a part has them within the spread of its size.
    expected = np.array([0.6, 0.3, 0.1])
    assert (np.abs(shares - expected) < 3 * np.sqrt(expected * (1 - expected) / len(ids))).all()
    both = np.bincount(data.groups[data.source.manifest.split != TEST], minlength=3) / 300
    assert both == pytest.approx(expected)


def test_groups_say_what_was_done_to_the_labels():
    data = load()
    manifest = data.source.manifest
    ids = np.flatnonzero(manifest.split != TEST)
    wrong = data.labels[ids] != manifest.true_labels[ids]
    assert wrong.any() and (wrong[data.groups[ids] == MIS_H]).all()
    assert not wrong[data.groups[ids] == CORRECT].any()


def test_the_test_set_is_untouched():
    config = make_config("cross_entropy")
    data, clean = noisy_data(config), load(noise={"kind": "none", "mis_h": 0.0, "mis_l": 0.0})
    test = data.source.manifest.where(TEST)
    assert (data.labels[test] == data.source.manifest.true_labels[test]).all()
    assert torch.equal(images(config, data)[test], images(config, clean)[test])


def test_without_noise_every_label_is_as_given():
    data = load(noise={"kind": "none", "mis_h": 0.0, "mis_l": 0.0})
    assert (data.labels == data.source.manifest.labels).all()
    assert (data.groups == CORRECT).all()


def test_images_of_mis_l_alone_are_spoiled():
    config = make_config("cross_entropy")
    data = noisy_data(config)
    kept = images(config, data)
    clean = images(config, load(noise={"kind": "none", "mis_h": 0.0, "mis_l": 0.0}))
    changed = (kept != clean).flatten(1).any(1).numpy()
    assert (changed == (data.groups == MIS_L)).all() and changed.any()


def test_images_held_in_memory_are_the_same():
    held = make_config("cross_entropy", data={"cache": "memory"})
    config = make_config("cross_entropy")
    assert torch.equal(images(held, noisy_data(held)), images(config, noisy_data(config)))


def test_noise_has_a_seed_of_its_own():
    first = load(noise={"seed": 1})
    assert (load(noise={"seed": 1}).labels == first.labels).all()
    assert (load(noise={"seed": 2}).labels != first.labels).any()
    assert (load(noise={"seed": make_config("gce").run.seed}).labels == load().labels).all()


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_with_a_seed_of_its_own_noise_does_not_depend_on_who_validates(kind):
    """Runs of several seeds that compare methods on the same wrong labels."""
    data = {"source": "digits", "validation_fraction": 0.2}
    noise = {"kind": kind, "mis_h": 0.3, "mis_l": 0.1, "seed": 1}
    first, second = (load(run={"seed": seed}, data=data, noise=noise) for seed in (0, 1))
    assert (first.source.manifest.split != second.source.manifest.split).any()
    assert (first.labels == second.labels).all() and (first.groups == second.groups).all()
    counted = first.source.manifest.split != TEST
    assert (first.groups[counted] == MIS_H).mean() == pytest.approx(0.3, abs=0.03)
    # Both sides of the split have their share, by other draws.
    validated = first.source.manifest.where(VALIDATION)
    assert (first.groups[validated] == MIS_H).mean() == pytest.approx(0.3, abs=0.08)


def test_instance_dependent_noise_looks_at_the_images():
    data = load(noise={"kind": "instance"})
    train = data.source.manifest.where(TRAIN)
    assert (data.groups[train] == MIS_H).mean() == pytest.approx(0.3, abs=0.1)


def test_noise_is_the_same_in_every_process():
    """Nothing but the configuration goes in: a process that loads anew gets the same."""
    config = make_config("cross_entropy")
    again = load_noisy_data(config)
    assert (again.labels == noisy_data(config).labels).all()
    assert (again.groups == noisy_data(config).groups).all()


def test_a_task_evaluates_only_the_splits_there_are():
    config = make_config("cross_entropy", data={"validation_fraction": 0.0})
    task = build_task(config, noisy_data(config), pin_memory=False)
    assert set(task.evaluation_ids) == {"eval"}
    assert len(task.train_ids) == 128


@pytest.mark.parametrize(("sampler", "balanced"), [("shuffled", False), ("class_balanced", True)])
def test_the_sampler_says_whether_classes_are_balanced(sampler, balanced):
    config = make_config("cross_entropy", data={"sampler": sampler})
    assert build_task(config, noisy_data(config), pin_memory=False).class_balanced is balanced


def test_networks_of_a_method_start_apart():
    config = make_config("qmix")
    first, second = build_method(config, noisy_data(config)).networks
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def write_csv(folder, true_labels):
    """Forty grey images labelled 0 and 1 in turn; returns the section that reads them."""
    rows = ["image,label" + (",true_label" if true_labels else "")]
    for i in range(40):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 2}" + (f",{true_labels[i]}" if true_labels else ""))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"source": "csv", "root": str(folder), "image_size": 16}


NO_NOISE = {"kind": "symmetric", "mis_h": 0.0, "mis_l": 0.0}


def test_labels_that_nobody_vouches_for_are_not_counted_as_correct(tmp_path):
    data = write_csv(tmp_path, None)
    assert load(data=data, noise=NO_NOISE).groups is None
    assert (load(data=data, noise=NO_NOISE | {"mis_h": 0.25}).groups == MIS_H).any()


def test_known_truth_decides_with_and_without_injected_noise(tmp_path):
    truth = [i % 2 if i >= 10 else 0 for i in range(40)]
    section = write_csv(tmp_path, truth)
    for noise in (NO_NOISE, NO_NOISE | {"mis_h": 0.25, "mis_l": 0.1}):
        data = load(data=section, noise=noise)
        judged = data.groups != MIS_L
        wrong = data.labels != data.source.manifest.true_labels
        assert ((data.groups == MIS_H) == wrong)[judged].all() and wrong.any()


@pytest.mark.parametrize(("epochs", "warned"), [(2, True), (3, False)])
@pytest.mark.parametrize(
    "method",
    [("qmix", "warmup_epochs"), ("dividemix", "warmup_epochs"), ("sscl", "promotion_epoch")],
)
def test_a_run_that_ends_in_warm_up_is_warned_of(method, epochs, warned, caplog):
    name, key = method
    config = make_config(name, run={"epochs": epochs}, method=METHOD_SETTINGS[name] | {key: 2})
    build_method(config, noisy_data(config))
    assert ("this run is the warm-up alone" in caplog.text) == warned


@pytest.mark.parametrize(
    ("sections", "warning"),
    [
        # 96 samples are trained on, in 6 batches of 16.
        ({"run": {"epochs": 2}, "optim": {"lr_warmup_steps": 13}}, "the run has 12 steps"),
        ({"run": {"epochs": 2}, "optim": {"lr_warmup_steps": 12}}, ""),
        ({"model": {"backbone": "resnet18", "width": 32}}, "model.width: 32 has no effect"),
        ({"model": {"backbone": "resnet18", "width": 16}}, ""),
        ({"model": {"blocks": 2}}, ""),
        ({"model": {"norm": "batch", "groups": 4}}, "model.groups: 4 has no effect"),
        ({"model": {"norm": "group", "groups": 4}}, ""),
        ({"model": {"norm": "frozen", "groups": 4, "weights": "w"}}, "model.groups: 4 has no"),
        # Layers of its projector have no statistics to freeze.
        (
            {
                "method": METHOD_SETTINGS["sscl"],
                "model": {"norm": "frozen", "groups": 4, "weights": "w"},
            },
            "",
        ),
    ],
)
def test_what_is_hardly_meant_is_warned_of(sections, warning, caplog, monkeypatch):
    monkeypatch.setattr("methods.networks.load_weights", lambda encoder, path: None)
    config = make_config("cross_entropy", **sections)
    build_method(config, noisy_data(config))
    assert warning in caplog.text and bool(caplog.text) == bool(warning)


def test_there_must_be_statistics_to_freeze():
    config = make_config("cross_entropy", model={"norm": "frozen"})
    with pytest.raises(ModelError, match=r"^model.norm: frozen .* model.weights is not set; take"):
        build_method(config, noisy_data(config))


def test_methods_without_a_division_have_no_warm_up_to_warn_of(caplog):
    config = make_config("elr", run={"epochs": 1})
    build_method(config, noisy_data(config))
    assert not caplog.text


def test_the_order_of_classes_is_kept_and_may_not_change_on_resume():
    data = {"source": "csv", "root": "x", "class_names": ["mild", "grave"]}
    one = make_config("cross_entropy", data=data)
    other = make_config("cross_entropy", data={**data, "class_names": ["grave", "mild"]})
    assert one.model_dump(mode="json")["data"]["class_names"] == ["mild", "grave"]
    changed = 'data.class_names: ["mild", "grave"] -> ["grave", "mild"]'
    assert differences(one, other, MAY_CHANGE_ON_RESUME) == [changed]


def test_instance_dependent_noise_needs_no_validation_set():
    data = load(noise={"kind": "instance"}, data={"validation_fraction": 0.0})
    ids = data.source.manifest.where(TRAIN)
    assert len(data.source.manifest.where(VALIDATION)) == 0
    assert (data.groups[ids] == MIS_H).any()
