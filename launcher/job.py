"""Forwards `python -m tunesmith.launcher.job`, which queued batch scripts of version 0.1 call.

Stays for one release.
"""

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module("tunesmith.cli.batch_step").main())
