"""A rank that is killed takes the others with it, and nothing is lost."""

import pytest
from kills import kill_again_and_again


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_left_alone(tmp_path):
    """A shorter version of ``kills.py --kills 30``."""
    assert len(kill_again_and_again(tmp_path, num_kills=2, seed=1)) == 2
    logs = [path.read_text() for path in tmp_path.glob("run-*/log")]
    assert any("another process has gone or did not answer" in log for log in logs)
    assert not any("this is a defect" in log for log in logs)
