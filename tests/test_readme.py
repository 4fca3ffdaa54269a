"""What the README shows must work as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from processes import ROOT

from engine.config import load_config
from launcher import export, predict, report
from launcher.run import parse_arguments
from launcher.settings import Config

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LAUNCHES = [
    line.partition("launcher/run.py ")[2]
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("accelerate launch launcher/run.py ")
]
COMMANDS = [
    line
    for _, block in BLOCKS
    for line in block.splitlines()
    if "launcher/predict.py " in line or "launcher/export.py " in line
]
REPORTS = [
    line.partition("launcher/report.py ")[2]
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("python launcher/report.py ")
]


@pytest.mark.parametrize("arguments", LAUNCHES)
def test_launch_lines_name_real_files_and_settings(arguments):
    options = parse_arguments(shlex.split(arguments))
    load_config(Config, ROOT / options.config, options.overrides)


def test_lines_that_predict_and_export_are_understood():
    assert len(COMMANDS) == 4
    for line in COMMANDS:
        program, _, arguments = line.partition("launcher/")[2].partition(".py ")
        module = {"predict": predict, "export": export}[program]
        options = module.parse_arguments(shlex.split(arguments))
        assert options.checkpoint.parts[0] == "runs"


@pytest.mark.parametrize("arguments", REPORTS)
def test_report_lines_are_understood(arguments):
    options = report.parse_arguments(shlex.split(arguments))
    assert len(options.runs) == 1 or options.out == Path("comparison")


def test_own_data_in_five_lines_is_a_configuration(tmp_path):
    blocks = [block for language, block in BLOCKS if language == "yaml"]
    assert len(blocks) == 1 and len(blocks[0].splitlines()) == 5
    path = tmp_path / "mine.yaml"
    path.write_text(blocks[0])
    config = load_config(Config, path)
    assert config.data.source == "csv" and config.data.root == Path("/data/mine")


def test_every_configuration_is_in_the_table_and_the_other_way_round():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+\.yaml)`", row)}
    assert named == {path.name for path in (ROOT / "configs").glob("*.yaml")}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE)
    assert {"demo", "test", "check"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
