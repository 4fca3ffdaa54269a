"""Processes that each see a share of the samples separate them as one that sees them all."""

from pathlib import Path

import pytest
import torch
from processes import collect

SCRIPT = Path(__file__).with_name("separation_values.py")
# Sums of some hundred terms of order one, in another order.
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return collect(SCRIPT, tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return collect(SCRIPT, tmp_path_factory.mktemp("ranks"), request.param)


def test_each_process_took_its_share(alone, ranks):
    own = [found["quality"]["num_own"] for found in ranks]
    assert sum(own) == alone["quality"]["num_own"] == 1501
    assert max(own) - min(own) <= 1


def test_the_table_has_something_to_tell(alone):
    """Own fits, a class that takes the pooled one, all three groups, several iterations."""
    assert alone["quality"]["source"].tolist() == [[0, 0, 0, 1]] * 2
    assert alone["quality"]["group"].unique().tolist() == [0, 1, 2]
    assert alone["quality"]["num_iterations"].min() > 3


@pytest.mark.parametrize("case", ["quality", "few"])
def test_shares_of_a_table_are_separated_as_the_whole(alone, ranks, case):
    expected = alone[case]
    for found in (found[case] for found in ranks):
        for name in ("group", "source", "num_iterations", "converged"):
            assert torch.equal(found[name], expected[name]), name
        for name in ("posterior", "weights", "means", "covariances", "log_likelihood"):
            torch.testing.assert_close(
                found[name], expected[name], rtol=0, atol=ROUNDING, equal_nan=True, msg=name
            )


def test_every_process_has_the_same_bits(ranks):
    first = ranks[0]["quality"]
    for found in (found["quality"] for found in ranks[1:]):
        assert found["digest"] == first["digest"]
        for name in ("weights", "means", "covariances", "log_likelihood", "source"):
            assert torch.equal(found[name], first[name]), name


def in_order(rows, num_processes):
    """Rows that were gathered rank by rank, each of which had every so manyeth, put in order."""
    places = torch.cat([torch.arange(len(rows))[r::num_processes] for r in range(num_processes)])
    return rows[places.argsort()]


@pytest.mark.parametrize("name", ["p", "w"])
def test_the_loss_alone_is_shared_out_too(alone, ranks, name):
    for found in ranks:
        rows = in_order(found["loss_alone"][name], len(ranks))
        torch.testing.assert_close(rows, alone["loss_alone"][name], rtol=0, atol=ROUNDING)


def test_quantiles_are_exact(alone, ranks):
    expected = alone["exact_statistics"]
    for found in (found["exact_statistics"] for found in ranks):
        assert torch.equal(found["quantiles"], expected["quantiles"])
        assert torch.equal(in_order(found["scaled"], len(ranks)), expected["scaled"])
        relative = in_order(found["relative"], len(ranks))
        torch.testing.assert_close(relative, expected["relative"], rtol=0, atol=ROUNDING)


def test_what_one_process_cannot_use_stops_all(alone, ranks):
    many = ", ".join(str(1000 + i) for i in range(20, 30))
    for found in [alone, *ranks]:
        assert found["refusals"] == {
            "loss": "separation: loss is not finite for network 1: sample_ids 1007",
            "uncertainty": "separation: uncertainty is not finite for network 1: sample_ids"
            f" {many} and 3 more",
            "nothing": "separation: loss has shape (2, 0); expected (networks, samples >= 1)",
        }
