"""Runs of the tiny setting on image files, trained once for all tests that use what is left."""

import csv
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from accelerate.state import AcceleratorState
from method_settings import tiny_config
from PIL import Image
from prediction_tables import read_table
from tiny_runs import make_config, noisy_data

from launcher import run
from launcher.assemble import load_noisy_data
from launcher.predict import main as predict_main
from launcher.settings import Config

CLASSES = ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4")


class Trained(NamedTuple):
    """A finished run of two epochs and what it learned from."""

    run: Path
    data: Path

    @property
    def config(self):
        text = (self.run / "config.yaml").read_text()
        return Config.model_validate(yaml.safe_load(text))

    def split(self, number):
        """Names of the images of a split, and their labels as the run was given them."""
        found = load_noisy_data(self.config)
        ids = found.source.manifest.where(number)
        return [found.source.manifest.names[i] for i in ids], found.labels[ids]


def write_data(folder):
    """Synthetic images of 40 px as files, with names for classes and a split."""
    (folder / "images").mkdir(parents=True)
    clean = make_config("cross_entropy", noise={"mis_h": 0.0, "mis_l": 0.0})
    source = noisy_data(
        clean.model_copy(update={"data": clean.data.model_copy(update={"image_size": 40})})
    ).source
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split"])
        for index, label in enumerate(source.manifest.labels):
            name = f"images/{index:03}.png"
            Image.fromarray(source.reader.read(index)).save(folder / name)
            split = ("train", "val", "test")[source.manifest.split[index]]
            writer.writerow([name, CLASSES[label], split])
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Method -> its finished run; each is trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("trained")
    data, finished = write_data(folder / "data"), {}

    def train(method):
        if method not in finished:
            settings = tiny_config(method, noise={"mis_l": 0.0}, run={"epochs": 2})
            settings["data"] = {
                "source": "csv", "root": str(data), "labels": "labels.csv",
                "image_size": 32, "num_workers": 0,
            }  # fmt: skip
            settings["run"]["dir"] = str(folder / method)
            (folder / f"{method}.yaml").write_text(yaml.safe_dump(settings))
            AcceleratorState._reset_state(reset_partial_state=True)
            assert run.main(["--config", str(folder / f"{method}.yaml")]) == 0
            AcceleratorState._reset_state(reset_partial_state=True)
            finished[method] = Trained(folder / method, data)
        return finished[method]

    return train


@pytest.fixture
def predict(tmp_path, capsys):
    """Runs launcher/predict.py; returns the rows, what was printed, and the exit code."""

    def call(checkpoint, *images, options=(), code=0):
        out = tmp_path / "out" / "predictions.csv"
        arguments = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
        assert predict_main([*arguments, *options, "--images", *map(str, images)]) == code
        printed = capsys.readouterr()
        return (read_table(out) if out.exists() else None), printed.out + printed.err

    return call
