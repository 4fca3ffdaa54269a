import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_runs import make_config, noisy_data

from data.manifest import LEFT_OUT
from data.noise import MIS_H, MIS_L
from data.quality import QualityReference, image_statistics
from launcher.assemble import build_task
from launcher.facts import ModelFacts, gather_facts


def facts_of(config):
    data = noisy_data(config)
    tree = gather_facts(data, build_task(config, data, pin_memory=False))
    return data, ModelFacts.model_validate_json(json.dumps(tree))


def test_facts_are_those_of_the_data_that_is_trained_on():
    config = make_config("qmix")
    data, facts = facts_of(config)
    manifest = data.source.manifest
    assert facts.class_names == manifest.class_names
    for number, name in enumerate(("train", "validation", "test")):
        labels = data.labels[manifest.where(number)]
        assert facts.num_images[name] == tuple(np.bincount(labels, minlength=5))
    groups = data.groups[manifest.where(0)]
    assert facts.wrong_labels == (groups == MIS_H).sum() > 0
    assert facts.spoiled_images == (groups == MIS_L).sum() > 0


def test_images_that_were_spoiled_on_purpose_set_no_standard():
    config = make_config("qmix")
    data, facts = facts_of(config)
    task = build_task(config, data, pin_memory=False)

    def reference(ids):
        images = torch.cat([images for _, images in task.loader([ids])])
        return QualityReference.of(image_statistics(images).numpy())

    usable = task.train_ids[data.groups[task.train_ids] != MIS_L]
    assert facts.quality == reference(usable)
    # Many of the spoiled ones are less sharp than what is warned of.
    assert reference(task.train_ids).sharpness[5] < facts.quality.sharpness[5]


def test_many_images_are_represented_by_some(monkeypatch):
    config = make_config("cross_entropy")
    every = facts_of(config)[1].quality
    monkeypatch.setattr("launcher.facts.NUM_REFERENCE", 20)
    some = facts_of(config)[1].quality
    assert some != every
    assert some.sharpness[50] == pytest.approx(every.sharpness[50], rel=0.2)


def test_images_that_corrections_left_out_are_counted():
    config = make_config("cross_entropy")
    data = noisy_data(config)
    task = build_task(config, data, pin_memory=False)
    assert gather_facts(data, task)["left_out"] == 0
    split = data.source.manifest.split.copy()
    split[task.train_ids[:3]] = LEFT_OUT
    manifest = data.source.manifest.with_split(split)
    fewer = dataclasses.replace(data, source=dataclasses.replace(data.source, manifest=manifest))
    assert gather_facts(fewer, task)["left_out"] == 3


def test_labels_that_corrections_changed_are_counted():
    config = make_config("cross_entropy")
    data = dataclasses.replace(noisy_data(config), num_corrected=4)
    assert gather_facts(data, build_task(config, data, pin_memory=False))["corrected"] == 4


def test_what_is_unknown_is_not_counted():
    config = make_config("cross_entropy")
    data = noisy_data(config)
    task = build_task(config, data, pin_memory=False)
    unknown = dataclasses.replace(data, groups=None)
    assert gather_facts(unknown, task)["wrong_labels"] is None
    assert gather_facts(unknown, task)["spoiled_images"] is None
