"""What a person runs: parse, wire together, print."""

__all__ = ["EXIT_USER_ERROR"]

# Of every command, for what the user can mend; launcher.ends has the other codes.
EXIT_USER_ERROR = 2
