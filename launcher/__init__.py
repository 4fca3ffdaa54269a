"""What a person runs: parse, wire together, print."""

__all__: list[str] = []
