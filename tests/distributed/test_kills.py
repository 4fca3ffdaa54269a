"""A rank that is killed takes the others with it, and nothing is lost."""

import os
import re
import signal

import pytest
from kills import begin, kill_again_and_again, ranks_of, start, wait_until_begun
from method_settings import write_config


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_left_alone(tmp_path):
    """A shorter version of ``kills.py --kills 30``."""
    assert len(kill_again_and_again(tmp_path, num_kills=2, seed=1)) == 2
    logs = [path.read_text() for path in tmp_path.glob("run-*/log")]
    assert any("another process has gone or did not answer" in log for log in logs)
    assert not any("this is a defect" in log for log in logs)


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_with_the_phase(tmp_path):
    folder = begin(tmp_path / "hangs")
    run = {"dir": str(folder / "run"), "epochs": 50}
    write_config(folder, "qmix", run=run, runtime={"timeout_seconds": 15.0})
    launcher = start(folder)
    wait_until_begun(launcher, folder)
    ranks = ranks_of(launcher)
    assert len(ranks) == 2, (folder / "log").read_text()[-2000:]
    hung = ranks[1]
    os.kill(hung, signal.SIGSTOP)
    assert launcher.wait(timeout=150) != 0
    log = (folder / "log").read_text()
    said = r"error: \[rank 0\] another process has gone or did not answer within "
    phase = "(the start|epoch|survey|separation|evaluation)"
    assert re.search(rf"{said}runtime.timeout_seconds 15, in {phase}", log)
    assert "go on with --resume auto" in log
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
