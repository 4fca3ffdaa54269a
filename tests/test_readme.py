"""What the README shows must work as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from processes import ROOT

from engine.config import load_config
from engine.plan import per_rank_batch_size
from launcher import export, predict, report
from launcher.run import parse_arguments
from launcher.settings import Config
from launcher.sweep import Sweep, cells_of

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
SUBMISSIONS = re.findall(r"(?:^|`)sbatch (.*?)(?:$|`)", README, flags=re.MULTILINE)
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


def submitted(line):
    """Options of sbatch by name, those of the script's own lines included, script and arguments."""
    words = shlex.split(line)
    given = [word for word in words if word.startswith("--")]
    script, *arguments = words[len(given) :]
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    own = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH --")]
    options = dict(option.removeprefix("--").partition("=")[::2] for option in [*own, *given])
    return options, script, arguments


def test_lines_that_submit_are_found():
    scripts = [submitted(line)[1] for line in SUBMISSIONS]
    assert scripts == ["slurm/train.sh"] * 2 + ["slurm/sweep.sh"] * 2


@pytest.mark.parametrize("line", SUBMISSIONS)
def test_jobs_share_the_batches_of_their_configurations(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    options, script, arguments = submitted(line)
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    num_ranks = int(options["nodes"]) * int(options["ntasks-per-node"])
    if script == "slurm/train.sh":
        configs = [load_config(Config, Path(arguments[0]), arguments[1:])]
    else:
        sweep = load_config(Sweep, Path(*arguments or ["configs/sweeps/default.yaml"]))
        configs = [cell.compose() for cell in cells_of(sweep)]
        assert options["array"] == f"0-{len(configs) - 1}"
    for config in configs:
        per_rank_batch_size(config.optim.batch_size, num_ranks)


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
