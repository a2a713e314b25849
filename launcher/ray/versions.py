"""The package versions that must be equal on all nodes of a cluster."""

import importlib.metadata


def versions() -> dict[str, str]:
    """Versions of the packages that affect a worker's results or files."""
    installed = {}
    for name in ("tunesmith", "torch", "transformers", "peft", "ray"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
