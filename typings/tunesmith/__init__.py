"""What type checkers see of the package; at run time tunesmith/__init__.py stands for it."""

__version__: str
