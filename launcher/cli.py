"""Forwards `python -m tunesmith.launcher.cli`, which queued jobs of version 0.1 call, to the command line.

Stays for one release.
"""

from importlib import import_module


def main() -> None:
    import_module("tunesmith.cli.main").main()


if __name__ == "__main__":
    main()
