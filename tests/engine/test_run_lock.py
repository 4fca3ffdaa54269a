import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine import run_lock
from engine.run_lock import RunLock, holder_of, lasting_holder_of

# Holds the lock, with a child that outlives it.
HOLD = """
import os, sys, time
from pathlib import Path
from engine.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "_SECONDS_HERE", 0.2)
    monkeypatch.setattr(run_lock, "_SECONDS_ELSEWHERE", 0.4)


def test_a_second_run_is_told_who_is_there(tmp_path):
    folder = tmp_path / "run"
    assert holder_of(folder) is None
    first, second = RunLock(folder), RunLock(folder)
    first.take()
    assert f"process {os.getpid()} on " in holder_of(folder)
    with pytest.raises(OSError, match=rf"run.dir: .*run is in use by process {os.getpid()} on "):
        second.take()
    first.release()
    assert holder_of(folder) is None
    second.take()
    second.release()


def test_a_killed_run_keeps_nobody_out(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        child = int(holder.stdout.readline())
        with pytest.raises(OSError, match=f"in use by process {holder.pid} "):
            RunLock(tmp_path).take()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        lock = RunLock(tmp_path)
        lock.take()
        os.kill(child, signal.SIGKILL)
        lock.release()


def test_a_run_elsewhere_is_waited_for(tmp_path, caplog):
    held = RunLock(tmp_path)
    held.take()
    (tmp_path / ".lock").write_text("process 7 on another-node since then")
    with pytest.raises(OSError, match="in use by process 7 on another-node"):
        RunLock(tmp_path).take()
    assert "waiting for it" in caplog.text
    assert lasting_holder_of(tmp_path) == "process 7 on another-node since then"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lasting_holder_of, tmp_path)
        held.release()
        assert waiting.result() is None


def test_a_machine_whose_name_begins_like_this_ones_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "node1")
    held = RunLock(tmp_path)
    held.take()
    for holder, patience in (("node1", 0.2), ("node12", 0.4)):
        (tmp_path / ".lock").write_text(f"process 7 on {holder} since then")
        began = time.monotonic()
        lasting_holder_of(tmp_path)
        assert time.monotonic() - began >= patience
        assert run_lock._patience(holder_of(tmp_path)) == patience
    held.release()


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    def unsupported(file, operation):
        raise OSError("Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    lock = RunLock(tmp_path)
    lock.take()
    assert "no locks here" in caplog.text and holder_of(tmp_path) is None
    lock.release()
