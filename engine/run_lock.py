"""One run at a time in a run's folder."""

import fcntl
import logging
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import IO

__all__ = ["RunLock", "holder_of", "lasting_holder_of"]

logger = logging.getLogger(__name__)

_NAME = ".lock"
_SECONDS_BETWEEN = 0.1
# Here somebody may be looking who holds it. The lock of a machine that is gone lasts as long as the
# file server waits for that machine: NFS 4 does so for 90 seconds.
_SECONDS_HERE, _SECONDS_ELSEWHERE = 1.0, 150.0


class RunLock:
    """Kept by the main process from before anything is written until the run has ended.

    A lock of the operating system on a file in the folder, which goes with the process however it
    ends, so that a killed run keeps nobody out. It holds between nodes on NFS and on Lustre mounted
    with flock.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock, or say in the log that this file system has none.

        Raises:
            OSError: Another process holds it; the message says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _NAME
        began, has_waited = time.monotonic(), False
        while not _lock(file := path.open("a+", encoding="utf-8"), path):
            holder = _read(file)
            file.close()
            patience = _patience(holder)
            if time.monotonic() - began > patience:
                raise OSError(
                    f"run.dir: {self.folder} is in use by {holder}; wait for its end, or choose "
                    f"another folder; if that process is no more, remove {path}"
                )
            if not has_waited and patience > _SECONDS_HERE:
                logger.warning("%s is held by %s; waiting for it", self.folder, holder)
                has_waited = True
            time.sleep(_SECONDS_BETWEEN)
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} {_this_host()} since {now}")
        file.flush()
        self._file = file
        # A child would hold it on after this process is gone.
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        """Let others in, and leave nothing behind."""
        if self._file is not None:
            (self.folder / _NAME).unlink(missing_ok=True)
            self._forget()

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def holder_of(folder: Path) -> str | None:
    """Which process holds a run's folder, in words; None where none does or nobody can tell."""
    try:
        with (folder / _NAME).open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file)
    except OSError:
        return None
    return None


def lasting_holder_of(folder: Path) -> str | None:
    """As above, but a process that may have gone with its machine is given the time for that."""
    began = time.monotonic()
    while (holder := holder_of(folder)) and time.monotonic() - began < _patience(holder):
        time.sleep(_SECONDS_BETWEEN)
    return holder


def _patience(holder: str) -> float:
    """Seconds to wait for a process to let go of its lock."""
    # With what follows the name: node1 is not node12.
    return _SECONDS_HERE if f"{_this_host()} since " in holder else _SECONDS_ELSEWHERE


def _lock(file: IO[str], path: Path) -> bool:
    """Lock a file, if nobody else has and it is still there; True also where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s: no locks here, nothing keeps out others (%s)", path, error)
        return True
    # Its last holder may have removed it in between.
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _this_host() -> str:
    return f"on {socket.gethostname()}"


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
