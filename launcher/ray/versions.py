"""The versions that every machine of a cluster must share."""

import importlib.metadata


def versions() -> dict[str, str]:
    """Of the packages whose numbers or files a worker's results depend on."""
    found = {}
    for name in ("tunesmith", "torch", "transformers", "peft", "ray"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
