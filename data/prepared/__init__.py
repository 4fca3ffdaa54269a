"""A data set shrunk once into a few large files that many processes read at random."""

__all__: list[str] = []
