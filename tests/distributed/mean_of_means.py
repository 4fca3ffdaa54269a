"""The launcher with the usual mistake built in: each rank divides by its own count."""

import sys
from types import SimpleNamespace

import engine.terms
from engine import collectives
from launcher.run import main

if __name__ == "__main__":
    engine.terms.collectives = SimpleNamespace(
        all_reduce_sum=lambda counts: counts * collectives.num_ranks(),
        num_ranks=collectives.num_ranks,
    )
    sys.exit(main())
