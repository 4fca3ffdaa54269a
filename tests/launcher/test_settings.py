"""The whole configuration, section by section."""

import os
from pathlib import Path

import pytest
import yaml
from method_settings import tiny_config
from pydantic import BaseModel

from engine.config import ConfigError, load_config
from launcher.settings import Config
from launcher.sweep import Sweep

# What else has to be set for a key to be allowed.
NEEDED = {"noise.matrix": ["noise={kind: matrix}"]}


def path_keys(model, prefix=""):
    """The dotted keys of all settings that take a path."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from path_keys(field.annotation, f"{prefix}{name}.")
        elif "Path" in repr(field.annotation):
            yield f"{prefix}{name}"


def setting(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def write(tmp_path, tree):
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "file.yaml"


def test_the_settings_that_take_a_path_are_found():
    expected = {"run.dir", "data.root", "data.prepared", "data.corrections", "model.weights"}
    assert expected < set(path_keys(Config))


@pytest.mark.parametrize("key", list(path_keys(Config)))
def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    tree = tiny_config("cross_entropy", data={"source": "csv", "root": "~/data"})
    path = write(tmp_path, tree)
    config = load_config(Config, path, [*NEEDED.get(key, []), f"{key}=~/x"])
    assert setting(config, key) == Path("/home/me/x")
    if key != "data.root":
        assert config.data.root == Path("/home/me/data")


def test_a_tilde_is_the_home_folder_in_a_list_and_in_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write(tmp_path, tiny_config("cross_entropy"))
    config = load_config(Config, path, ["data.corrections=[~/a.csv, b~.csv]"])
    assert config.data.corrections == (Path("/home/me/a.csv"), Path("b~.csv"))
    sweep = {"base": "~/base.yaml", "out": "~", "methods": {"ce": {"name": "cross_entropy"}}}
    sweep = load_config(Sweep, write(tmp_path, {**sweep, "noises": {"none": {}}, "seeds": [0]}))
    assert (sweep.base, sweep.out) == (Path("/home/me/base.yaml"), Path("/home/me"))


def test_a_user_without_a_home_folder_is_named(tmp_path):
    assert os.path.expanduser("~no.such.user") == "~no.such.user"
    path = write(tmp_path, tiny_config("cross_entropy", run={"dir": "~no.such.user/runs"}))
    with pytest.raises(ConfigError) as error:
        load_config(Config, path, ["data.root=~no.such.user"])
    assert str(error.value).splitlines() == [
        f"{path}: run.dir: found '~no.such.user/runs', but ~no.such.user has no home folder",
        "command line: data.root: found '~no.such.user', but ~no.such.user has no home folder",
    ]
