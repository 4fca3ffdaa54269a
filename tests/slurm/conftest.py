"""A real SLURM of two nodes on this machine, in a temporary folder, for the length of the tests."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
# Names that are addresses too, for a run's ranks look for the first node of its job by name.
NODES = ("127.0.0.1", "127.0.0.2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# A requeued job waits for as long as its credentials are valid, and a second: 121 s by default.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
MailProg=/bin/true
KillWait=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def reason_to_skip():
    """Why no SLURM can be started here; empty where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; Debian: slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    return ""


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """The daemons, and SLURM's commands as a user has them."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MEDNOISE_PYTHON": sys.executable,
            "MEDNOISE_LOGS": str(folder / "logs"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self._daemons = []

    @staticmethod
    def wait_until(condition, seconds, what):
        """Wait until the condition is true; ``what()`` says what was waited for in vain."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s: {what()}"
            time.sleep(0.25)

    def start(self):
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(folder=self.folder, host=host, ports=free_ports(3), nodes=NODES)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        munge = self.folder / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        self._start(
            "munged", "--foreground", *(f"--{k}={munge / v}" for k, v in options.items()),
            user="munge", group="munge", extra_groups=[],
        )  # fmt: skip
        self.wait_until((munge / "socket").exists, 20, self.daemon_logs)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self.wait_until(lambda: self.idle_nodes() == len(NODES), 60, self.daemon_logs)

    def _start(self, *command, **options):
        with (self.folder / f"{command[0]}-{len(self._daemons)}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdout=output, stderr=output,
                    stdin=subprocess.DEVNULL, start_new_session=True, **options,
                )
            )  # fmt: skip

    def stop(self):
        """End jobs, then the daemons, the last one first."""
        self.call("scancel", "--state=PENDING", "--quiet", "--me", check=False)
        self.call("scancel", "--signal=KILL", "--full", "--quiet", "--me", check=False)
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def idle_nodes(self):
        assert all(daemon.poll() is None for daemon in self._daemons), self.daemon_logs()
        states = self.call("sinfo", "--noheader", "--Node", "--format=%T", check=False)
        return states.split().count("idle")

    def daemon_logs(self):
        logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in logs)

    def call(self, *command, check=True):
        """Run a command in the repository; returns what it prints."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments):
        """``sbatch`` with arguments, on CPUs; returns the job's number."""
        output = f"--output={self.folder}/job-%j.out"
        no_gpus = ("--gpus-per-node=0", "--cpus-per-task=1", output)
        return self.call("sbatch", "--parsable", *no_gpus, *arguments).strip()

    def show(self, job):
        """All that SLURM knows of a job, by name."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(field.partition("=")[::2] for field in text.split())

    def state(self, job):
        """The state of a job and its exit code, such as ``("FAILED", "2:0")``."""
        fields = self.show(job)
        return fields["JobState"], fields["ExitCode"]

    def wait_for_requeue(self, job, seconds=90):
        """Wait until a job that ran is in the queue again."""
        self.wait_until(lambda: self.show(job)["Restarts"] == "1", seconds, self.output)

    def wait(self, job, seconds=150):
        """Wait for a job's end; returns its state and exit code."""
        self.wait_until(
            lambda: self.state(job)[0] in ENDED, seconds,
            lambda: f"job {job}: {self.state(job)}\n{self.output()}",
        )  # fmt: skip
        return self.state(job)

    def output(self):
        """What batch scripts and ranks have said."""
        paths = [*self.folder.glob("job-*.out"), *sorted(self.folder.glob("logs/*/*.log"))]
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in paths)


@pytest.fixture(scope="session")
def cluster():
    """A running SLURM."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(f"no SLURM: {reason}")
    # Not below pytest's folder, which munged may not look into; a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    slurm = Cluster(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)
