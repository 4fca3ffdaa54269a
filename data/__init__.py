"""What a run learns from: manifests, image readers, sources, noise and views."""

__all__: list[str] = []
