"""How training runs: configuration, processes, plan, ledger, loop, checkpoints and records."""

__all__: list[str] = []
