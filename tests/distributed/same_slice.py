"""Recorded runs with a usual mistake built in: every rank takes the first slice of a batch."""

import record_run

import engine.trainer
from engine.plan import rank_slice
from engine.runtime import end_process

if __name__ == "__main__":
    engine.trainer.rank_slice = lambda batches, rank, num_ranks: rank_slice(batches, 0, num_ranks)
    end_process(record_run.run())
