"""The command that prepares data sets, as a person runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from method_settings import write_config
from PIL import Image
from processes import ROOT
from run_folders import read_record, untimed

from data.images import FileImages
from data.prepared.reader import PreparedImages
from launcher import prepare, run

NUM_IMAGES = 400


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of images for each of two classes, one of them damaged, one twice."""
    root = tmp_path_factory.mktemp("raw")
    for index in range(NUM_IMAGES):
        folder = root / ("train" if index % 4 else "test") / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index if index != 8 else 5)
        tiles = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        Image.fromarray(tiles).save(folder / f"{index}.jpg", quality=95)
    (root / "train" / "b" / "7.jpg").write_bytes(b"no image")
    return root


def command(root, folder, *more):
    return ["--source", "folder", "--root", str(root), "--out", str(folder), "--size", "64", *more]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The set prepared in one go."""
    folder = tmp_path_factory.mktemp("whole") / "prepared"
    assert prepare.main(command(root, folder, "--jobs", "1")) == 0
    return folder


def start(root, folder):
    """Start preparing in a process of its own and wait until it has noted some images."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launcher" / "prepare.py"), *command(root, folder, "--jobs=2")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal, deadline = folder / "journal.jsonl", time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 60):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_a_killed_run_continues_to_the_same_files(root, whole, tmp_path, capsys):
    folder = tmp_path / "prepared"
    process = start(root, folder)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    assert prepare.main(["--verify", str(folder)]) == 2
    assert "not finished" in capsys.readouterr().err
    assert prepare.main(command(root, folder, "--jobs", "2")) == 0
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(root, whole, tmp_path, number):
    folder = tmp_path / "prepared"
    process = start(root, folder)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"stopped by {number.name}; the same command goes on" in log
    assert prepare.main(command(root, folder)) == 0
    assert contents(folder) == contents(whole)


def test_what_was_made_is_told(root, tmp_path, capsys):
    folder = tmp_path / "prepared"
    assert prepare.main(command(root, folder)) == 0
    told = capsys.readouterr().out
    assert f"{NUM_IMAGES - 1} images" in told
    assert f"refused: 1 files, named in {folder / 'refused.csv'}" in told
    assert "2 images with the file of another one, 2 with its pixels, 2 that look like" in told
    assert "groups of them: 1; 1 in several splits, 1 with several labels" in told
    assert told.endswith(f"to read it: data.prepared={folder}\n")
    assert prepare.main(command(root, folder)) == 0
    assert "is prepared already" in capsys.readouterr().out
    assert prepare.main(["--verify", str(folder)]) == 0
    assert "399 images, every checksum is right" in capsys.readouterr().out
    assert prepare.main(command(root, folder, "--quality", "80")) == 2
    assert "prepared otherwise (quality 90)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: not given"),
        (["--out", "x"], "neither --config nor --source"),
        (["--out", "x", "--source", "busi"], "--root: not given; source busi needs its folder"),
        (["--out", "x", "--source", "digits", "run.seed=1"], "settings need --config"),
        (["--out", "x", "--source", "digits", "--size", "4"], "--size: 4; allowed: 8 to 8192"),
        (["--out", "x", "--source", "digits", "--quality", "0"], "--quality: 0; allowed: 1 to 100"),
        (["--out", "x", "--source", "digits", "--jobs", "0"], "--jobs: 0; allowed: 1 or more"),
    ],
)
def test_a_command_that_says_too_little_or_too_much_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_root_is_one_line(tmp_path, capsys):
    assert prepare.main(command(tmp_path / "absent", tmp_path / "made")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: data.root: {tmp_path / 'absent'} is no folder"
    )
    assert not (tmp_path / "made").exists()


def test_a_damaged_folder_is_prepared_again_only_when_it_is_deleted(root, whole, tmp_path, capsys):
    folder = tmp_path / "prepared"
    shutil.copytree(whole, folder)
    (folder / "images-00000.tar").write_bytes(bytes(5000))
    assert prepare.main(command(root, folder)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder / 'images-00000.tar'}: has 5000 bytes, expected ")
    assert error.endswith(f"or delete {folder} and prepare the data set again")
    shutil.rmtree(folder)
    assert prepare.main(command(root, folder)) == 0
    assert contents(folder) == contents(whole)


def test_a_check_decodes_each_image_once_and_prepared_ones_too(
    root, whole, tmp_path, monkeypatch, capsys, fresh_processes
):
    decoded = Counter()
    for reader in (FileImages, PreparedImages):

        def read(self, index, real=reader.read):
            decoded[type(self), index] += 1
            return real(self, index)

        monkeypatch.setattr(reader, "read", read)
    drawn = {"noise": {"mis_h": 0.0, "mis_l": 0.0}, "data": {"synthetic": {}}}
    config = write_config(tmp_path, "cross_entropy", run={"dir": str(tmp_path / "run")}, **drawn)
    check = ["--config", str(config), "--check", "data.image_size=32"]
    raw = ["data.source=folder", f"data.root={root}", "data.on_unreadable=quarantine"]
    assert run.main([*check, *raw]) == 0
    assert decoded == {(FileImages, index): 1 for index in range(NUM_IMAGES)}
    fresh_processes()
    decoded.clear()
    assert run.main([*check, f"data.prepared={whole}", "data.on_unreadable=quarantine"]) == 0
    assert decoded == {(PreparedImages, index): 1 for index in range(NUM_IMAGES - 1)}


def test_a_configuration_is_prepared_and_a_run_needs_nothing_else(
    tmp_path, capsys, fresh_processes
):
    config = write_config(tmp_path, "cross_entropy", run={"dir": str(tmp_path / "raw")})
    made, lossless = tmp_path / "made", ["--encoding", "png"]
    assert prepare.main(["--config", str(config), "--out", str(made), *lossless]) == 0
    assert json.loads((made / "manifest.json").read_text())["request"]["size"] == 32
    assert run.main(["--config", str(config), "run.epochs=1"]) == 0
    fresh_processes()
    prepared = write_config(tmp_path, "cross_entropy", data={"synthetic": {}})
    settings = [f"data.prepared={made}", f"run.dir={tmp_path / 'run'}", "run.epochs=1"]
    assert run.main(["--config", str(prepared), *settings]) == 0
    raw, small = (read_record(tmp_path / name) for name in ("raw", "run"))
    # Lossless copies of the asked size: the very same run.
    assert untimed(small) == untimed(raw)
    fresh_processes()
    capsys.readouterr()
    assert run.main(["--config", str(prepared), *settings, "data.image_size=64", "--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data.image_size: 64, but ") and error.count("\n") == 1
