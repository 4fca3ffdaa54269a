"""The list of all settings."""

import os
import re
import subprocess
import sys

import pytest
from processes import ROOT
from tiny_runs import make_config

from engine.config import flat_settings
from launcher.reference import describe_settings
from launcher.run import main
from methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_each_setting_of_a_run_is_there_with_its_meaning(method):
    paragraphs = dict(re.findall(r"^(\S.*)\n((?:    .*\n?)+)", describe_settings(), re.MULTILINE))
    for key in flat_settings(make_config(method)):
        title = f"{key} ({method})" if key.startswith("method.") else key
        meaning = paragraphs[title].partition(". ")[2]
        assert key == "method.name" or meaning.strip(), title


def test_a_part_of_them_can_be_asked_for(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--settings", "optim.lr"])
    assert capsys.readouterr().out == (
        "optim.lr\n    number > 0; default 0.001. Peak learning rate; never scaled by processes.\n"
        "optim.lr_warmup_steps\n"
        "    whole number >= 0; default 0. Steps of linear rise from 0 to lr.\n"
    )
    with pytest.raises(SystemExit, match="0"):
        main(["--settings", "gce"])
    titles = [line for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert titles and all(re.fullmatch(r"method\.\w+ \(gce\)", title) for title in titles)


def test_a_reader_that_has_seen_enough_is_no_failure():
    """Such as ``--settings | head``: nobody is there when the list is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "launcher" / "run.py"), "--settings"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_another_programs_word_is_no_beginning_of_this_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "x.yaml", "--set", "optim.lr=1"])
    assert "unrecognized arguments: --set" in capsys.readouterr().err


def test_what_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--settings", "optix"])
    assert "--settings optix: no key begins so, and no method is called so" in (
        capsys.readouterr().err
    )
