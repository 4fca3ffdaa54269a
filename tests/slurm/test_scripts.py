"""The batch scripts without SLURM: its commands are played by small programs on the search path."""

import os
import shutil
import subprocess

import pytest
from processes import ROOT

from launcher.sweep import SQUEUE

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
# Two ranks one after the other; the highest exit code, as the real one.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
worst=0
for rank in 0 1; do
    code=0
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" || code=$?
    ((code > worst)) && worst=$code
done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) printf 'first-node\\nsecond-node\\n' ;;
    requeue) echo "requeue $2" >> scontrol.log ;;
esac
"""
# Stands for Python: notes what it was started with, and ends as the test wants.
PYTHON = """#!/usr/bin/env bash
if [[ $2 == count ]]; then echo 6; exit; fi
echo "$@" > "arguments-$SLURM_PROCID"
env | grep -E '^(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_)' | sort > "environment-$SLURM_PROCID"
read -ra codes <<< "$CODES"
code=${codes[$SLURM_PROCID]}
if [[ $code == -* ]]; then kill "$code" $$; fi
exit "$code"
"""


@pytest.fixture
def submit(tmp_path):
    """Runs a batch script with ranks that end with the given codes; -N: killed by signal N."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script, *arguments, codes="0 0", **environment):
        outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        settings = {
            "PATH": f"{tmp_path}/bin:{outside['PATH']}",
            "MEDNOISE_PYTHON": "python",
            "CODES": codes,
            "SLURM_JOB_ID": "41234",
            "SLURM_JOB_NODELIST": "nodes[1-2]",
            "SLURM_NTASKS": "2",
        }
        return subprocess.run(
            ["bash", f"slurm/{script}", *arguments], cwd=tmp_path, capture_output=True, text=True,
            env=outside | settings | environment,
        )  # fmt: skip

    return run


@pytest.fixture
def requeued(tmp_path):
    """What was put back into the queue."""

    def read():
        log = tmp_path / "scontrol.log"
        return log.read_text().split() if log.exists() else []

    return read


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_each_rank_is_told_its_place(submit, requeued, tmp_path):
    done = submit("train.sh", "configs/mine.yaml", "optim.lr=1e-3", "data.root=/a b")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert (tmp_path / f"arguments-{rank}").read_text().split("\n")[0] == (
            "launcher/run.py --config configs/mine.yaml --resume auto optim.lr=1e-3 data.root=/a b"
        )
        assert (tmp_path / f"environment-{rank}").read_text().splitlines() == [
            f"LOCAL_RANK={rank}", "MASTER_ADDR=first-node", "MASTER_PORT=11234",
            f"RANK={rank}", "WORLD_SIZE=2",
        ]  # fmt: skip
    assert requeued() == []


@pytest.mark.parametrize(("visible", "local_rank"), [("", "1"), ("0,1", "1"), ("3", "0")])
def test_a_task_that_is_shown_one_gpu_takes_that(submit, tmp_path, visible, local_rank):
    assert submit("train.sh", "c.yaml", CUDA_VISIBLE_DEVICES=visible).returncode == 0
    said = (tmp_path / "environment-1").read_text().splitlines()
    assert f"LOCAL_RANK={local_rank}" in said and "RANK=1" in said


def test_a_lone_rank_has_no_process_group(submit, tmp_path):
    assert submit("train.sh", "configs/mine.yaml", SLURM_NTASKS="1").returncode == 0
    assert "WORLD_SIZE" not in (tmp_path / "environment-0").read_text()


@pytest.mark.parametrize(
    "codes", ["75 75", "-10 -10", "-15 -15"], ids=["saved", "not yet listening", "likewise, TERM"]
)
def test_a_stopped_job_is_requeued(submit, requeued, codes):
    done = submit("train.sh", "configs/mine.yaml", codes=codes, SLURM_RESTART_COUNT="2")
    assert done.returncode == 0, done.stderr
    assert "requeued, 3 of at most 20 times" in done.stdout
    assert requeued() == ["requeue", "41234"]


def test_a_job_is_not_requeued_without_end(submit, requeued):
    done = submit(
        "train.sh", "c.yaml", codes="75 75", SLURM_RESTART_COUNT="3", MAX_REQUEUES="3"
    )  # fmt: skip
    assert done.returncode == 75
    assert "requeued 3 times already, MAX_REQUEUES is 3" in done.stderr
    assert requeued() == []


@pytest.mark.parametrize("codes", ["1 1", "2 75", "75 3", "1 -15", "-9 0"])
def test_a_failed_job_is_not_requeued(submit, requeued, codes):
    done = submit("train.sh", "configs/mine.yaml", codes=codes)
    assert done.returncode != 0
    assert "failed with exit code" in done.stderr
    assert requeued() == []


def test_one_of_an_array_is_requeued_alone(submit, requeued, tmp_path):
    place = {"SLURM_ARRAY_JOB_ID": "41229", "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MAX": "5"}
    done = submit("sweep.sh", "sweep.yaml", "run.epochs=2", codes="75 75", **place)
    assert done.returncode == 0, done.stderr
    assert requeued() == ["requeue", "41229_4"]
    assert (tmp_path / "arguments-0").read_text().strip() == (
        "launcher/sweep.py run --job 41229_4 sweep.yaml 4 run.epochs=2"
    )


@pytest.mark.parametrize(
    ("index", "last", "is_said"), [(7, 7, True), (3, 3, True), (0, 3, False), (5, 5, False)]
)
def test_an_array_of_another_size_than_the_sweep_is_said_once(submit, index, last, is_said):
    place = {"SLURM_ARRAY_JOB_ID": "41229", "SLURM_ARRAY_TASK_ID": str(index)}
    done = submit("sweep.sh", "sweep.yaml", SLURM_ARRAY_TASK_MAX=str(last), **place)
    note = f"note: the array ends at {last} and sweep.yaml has 6 cells; for all of them sbatch"
    assert done.returncode == 0
    assert (note in done.stderr) == ("note" in done.stderr) == is_said


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("train.sh", [], {}, "no configuration"),
        ("train.sh", ["c.yaml"], {"SLURM_JOB_ID": ""}, "submit it with sbatch"),
        ("sweep.sh", ["s.yaml"], {}, "not a job array"),
    ],
)
def test_wrong_use_is_said(submit, script, arguments, environment, message):
    done = submit(script, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_job_from_another_folder_is_refused(submit, tmp_path):
    (tmp_path / "slurm" / "ranks.sh").unlink()
    done = submit("train.sh", "configs/mine.yaml")
    assert done.returncode == 2 and "submit from there" in done.stderr


ASKED = """#!/usr/bin/env bash
printf '%s\\n' "$@" > asked
printf '8_0 RUNNING\\n8_1 PENDING\\n'
exit $SQUEUE_CODE
"""
TOLD = """#!/usr/bin/env bash
printf '%s\\n' "$@" > told
[[ $3 != --queue-from-stdin ]] || cat > queue
"""


@pytest.mark.parametrize("code", [0, 1])
def test_status_asks_the_queue_where_python_cannot(submit, tmp_path, code):
    """As where Python runs in a container, which has no squeue."""
    for name, text in {"squeue": ASKED, "python": TOLD}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    done = submit("status.sh", "a b.yaml", "run.epochs=2", SQUEUE_CODE=str(code))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == SQUEUE[1:]
    handed = ["--queue-from-stdin"] if code == 0 else []
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["launcher/sweep.py", "status", *handed, "a b.yaml", "run.epochs=2"]
    if code == 0:
        assert (tmp_path / "queue").read_text() == "8_0 RUNNING\n8_1 PENDING\n"


SYNCED = """#!/usr/bin/env bash
printf '%s\\n' "$@" > synced
"""


def test_sync_hands_over_every_part_of_every_run(submit, tmp_path):
    (tmp_path / "bin" / "python").write_text(SYNCED)
    parts = [
        f"runs/{run}/wandb/offline-run-2026112{day}_101010-{run_id}"
        for run, day, run_id in (("a b", 6, "x1"), ("a b", 7, "x1"), ("sweep/cell", 5, "x2"))
    ]
    for part in (*parts, "runs/a b/wandb/run-20261126_111111-x3", "runs/a b/figures"):
        (tmp_path / part / "files").mkdir(parents=True)
    done = submit("sync.sh")
    assert done.returncode == 0, done.stderr
    handed = (tmp_path / "synced").read_text().splitlines()
    assert handed == ["-m", "wandb", "sync", *parts]
    assert submit("sync.sh", "runs/sweep").returncode == 0
    assert (tmp_path / "synced").read_text().splitlines()[3:] == parts[2:]


def test_sync_says_where_there_is_nothing(submit, tmp_path):
    (tmp_path / "runs").mkdir()
    done = submit("sync.sh")
    assert done.returncode == 0
    assert done.stdout == "nothing was kept offline below runs\n"


def test_sync_refuses_a_folder_that_there_is_not(submit, tmp_path):
    (tmp_path / "runs").mkdir()
    done = submit("sync.sh", "runs", "runz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: runz: no such folder; expected folders below which runs lie\n"
