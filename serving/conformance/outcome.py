"""Exceptions that end a check."""


class Broken(Exception):
    """The server violates the API contract."""


class NotSupported(Exception):
    """The server reports that it does not support the feature."""


class Skipped(Exception):
    """The check does not apply here."""
