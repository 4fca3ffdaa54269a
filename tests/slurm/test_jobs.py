"""The batch scripts on a real SLURM of two nodes, with runs of seconds on CPUs."""

import json
import math
import re
import sys

import pytest
import yaml
from method_settings import tiny_config, write_config
from run_folders import read_record, untimed

from launcher.run import main

pytestmark = pytest.mark.slow

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--time=10")
# In float32 Adam divides by what may be nothing but rounding.
SGD = {"name": "sgd", "lr": 0.02}


@pytest.fixture
def config(tmp_path):
    """Writes a configuration; the run's folder is the second argument below the test's own."""

    def write(method, folder, **sections):
        sections["run"] = {"dir": str(tmp_path / folder), **sections.get("run", {})}
        (tmp_path / f"{folder}-config").mkdir()
        return str(write_config(tmp_path / f"{folder}-config", method, **sections))

    return write


def assert_close_records(ours, theirs):
    assert len(ours) == len(theirs)
    for our_line, their_line in zip(untimed(ours), untimed(theirs), strict=True):
        assert our_line.keys() == their_line.keys()
        for key, value in our_line.items():
            other = their_line[key]
            same = value == other or math.isclose(value, other, rel_tol=1e-3, abs_tol=1e-4)
            assert same, f"{key}: {value} and {other}"


def test_two_nodes_train_as_one_process(cluster, config, tmp_path, fresh_processes):
    job = cluster.submit(*TWO_NODES, "slurm/train.sh", config("qmix", "two", optim=SGD))
    assert main(["--config", config("qmix", "one", optim=SGD)]) == 0
    assert cluster.wait(job) == ("COMPLETED", "0:0"), cluster.output()

    assert_close_records(read_record(tmp_path / "two"), read_record(tmp_path / "one"))
    logs = cluster.folder / "logs" / job
    assert sorted(path.name for path in logs.iterdir()) == ["rank-0.log", "rank-1.log"]
    assert "quadratic weighted kappa" in (logs / "rank-0.log").read_text()


@pytest.mark.parametrize("late", [0, 1])
def test_a_users_mistake_ends_the_job_and_is_said(cluster, config, tmp_path, late):
    """Whichever rank is the first to meet it, for srun then ends the other."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ $SLURM_PROCID != {late} ] || sleep 3\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    job = cluster.submit(
        *TWO_NODES, f"--export=ALL,MEDNOISE_PYTHON={python}",
        "slurm/train.sh", config("gce", "run"), "optim.lrr=1",
    )  # fmt: skip
    assert cluster.wait(job)[0] == "FAILED"
    said = (cluster.folder / f"job-{job}.out").read_text()
    assert said.count("unknown key; did you mean 'lr'?") == 1


def test_stopped_and_requeued_jobs_go_on_exactly(cluster, config, tmp_path):
    """One is sent the signal that it asked for; the other is requeued by its user."""
    longer = {"run": {"epochs": 12}}
    stop = {"stopped": ("scancel", "--signal=USR1"), "requeued": ("scontrol", "requeue")}
    jobs = {}
    for name, command in stop.items():
        job = cluster.submit(*TWO_NODES, "slurm/train.sh", config("qmix", name, **longer))
        record = tmp_path / name / "metrics.jsonl"
        cluster.wait_until(
            lambda record=record: record.exists() and len(read_record(record.parent)) >= 2,
            90, cluster.output,
        )  # fmt: skip
        cluster.call(*command, job)
        cluster.wait_for_requeue(job)
        assert len(read_record(record.parent)) < 12
        jobs[name] = job
    through = cluster.submit(*TWO_NODES, "slurm/train.sh", config("qmix", "through", **longer))

    for job in (*jobs.values(), through):
        assert cluster.wait(job) == ("COMPLETED", "0:0"), cluster.output()
    said = (cluster.folder / f"job-{jobs['stopped']}.out").read_text()
    assert "requeued, 1 of at most 20 times" in said
    theirs = untimed(read_record(tmp_path / "through"))
    for name, signal in (("stopped", "SIGUSR1"), ("requeued", "SIGTERM")):
        log = (cluster.folder / "logs" / jobs[name] / "rank-0.log").read_text()
        assert f"stopped by {signal}" in log and "going on from epoch-" in log
        ours = untimed(read_record(tmp_path / name))
        assert len(ours) == 12 and ours == theirs


def test_a_job_that_nears_its_time_limit_requeues_itself(cluster, config, tmp_path):
    path = config("cross_entropy", "run", run={"epochs": 2000})
    # Long after the ranks have begun, also where other tests run beside them.
    limit = ("--time=1", "--signal=USR1@20")
    job = cluster.submit(*TWO_NODES, *limit, "slurm/train.sh", path)
    cluster.wait_for_requeue(job)
    assert "stopped by SIGUSR1" in (cluster.folder / "logs" / job / "rank-0.log").read_text()
    cluster.call("scancel", job)


def test_a_cancelled_job_stays_cancelled(cluster, config, tmp_path):
    path = config("cross_entropy", "run", run={"epochs": 500})
    job = cluster.submit(*TWO_NODES, "slurm/train.sh", path)
    cluster.wait_until((tmp_path / "run" / "metrics.jsonl").exists, 90, cluster.output)
    cluster.call("scancel", job)
    assert cluster.wait(job)[0] == "CANCELLED"


def test_a_sweep_fills_and_a_cancelled_cell_is_taken_up(cluster, tmp_path):
    base, sweep = tmp_path / "base.yaml", tmp_path / "sweep.yaml"
    base.write_text(yaml.safe_dump(tiny_config("cross_entropy")))
    sweep.write_text(
        json.dumps({
            "base": str(base),
            "out": str(tmp_path / "out"),
            "methods": {"ce": {"name": "cross_entropy"}, "gce": {"name": "gce"}},
            "noises": {"sym20": {"mis_h": 0.2}},
            "seeds": [0, 1, 2],
        })
    )  # fmt: skip

    def status(*settings):
        return cluster.call("slurm/status.sh", str(sweep), *settings)

    def submit(array, *settings):
        return cluster.submit(
            f"--array={array}", "--time=10", "slurm/sweep.sh", str(sweep), *settings
        )

    def log(job):
        return (cluster.folder / "logs" / job / "rank-0.log").read_text()

    # The first cell is given more than it can do, and cancelled.
    endless = "run.epochs=500"
    first = submit("0", endless)
    folder = tmp_path / "out" / "sym20-ce-seed0"
    cluster.wait_until((folder / "metrics.jsonl").exists, 90, cluster.output)
    assert "6 cells: 1 running, 5 not begun" in status(endless)
    cluster.call("scancel", f"{first}_0")
    assert cluster.wait(f"{first}_0")[0] == "CANCELLED"
    # A run that was quick enough has saved before it went.
    assert re.search("6 cells: 1 (stopped|cut off), 5 not begun", status(endless))

    epochs = max(3, len(read_record(folder)) + 2)
    settings = f"run.epochs={epochs}"
    job = submit("0-5", settings)
    for index in range(6):
        assert cluster.wait(f"{job}_{index}") == ("COMPLETED", "0:0"), cluster.output()
    table = status(settings)
    assert "6 cells: 6 finished" in table and "to run the rest" not in table
    rows = [line.split() for line in table.splitlines()[2:8]]
    assert [row[2:4] for row in rows] == [["finished", f"{epochs}/{epochs}"]] * 6
    assert "going on from epoch-" in log(f"{job}_0")

    # A finished cell ends at once.
    before = (folder / "metrics.jsonl").read_bytes()
    again = submit("0", settings)
    assert cluster.wait(f"{again}_0") == ("COMPLETED", "0:0")
    assert "finished already" in log(f"{again}_0")
    assert (folder / "metrics.jsonl").read_bytes() == before
