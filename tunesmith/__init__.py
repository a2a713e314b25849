"""Tunesmith fine-tunes LLaMA-class models, and every run comes with proof of what it did."""

from pathlib import Path

__version__ = "0.2.0"

# In a checkout the packages (launcher/, training/, ...) are at the top of the repository, next to this one. In an
# installed wheel they are ordinary subpackages and this does nothing.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "launcher").is_dir():
    __path__.append(str(_root))
