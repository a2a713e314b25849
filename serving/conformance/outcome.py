"""The ways in which a check ends other than well."""


class Broken(Exception):
    """The server does something else than the contract says."""


class NotSupported(Exception):
    """The server says in its own words that it does not do this."""


class LeftOut(Exception):
    """The check cannot be made here, by nobody's fault."""
