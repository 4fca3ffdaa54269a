"""Recorded runs with a usual mistake built in: every rank takes the first slice of a batch."""

import sys

import record_run

import engine.trainer
from engine.plan import rank_slice

if __name__ == "__main__":
    engine.trainer.rank_slice = lambda batches, rank, num_ranks: rank_slice(batches, 0, num_ranks)
    sys.exit(record_run.run())
