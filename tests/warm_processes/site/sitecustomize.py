"""Makes `sys.executable` the warm client in every Python process that a test starts with the pool's environment."""

import os
import sys

if os.environ.get("TUNESMITH_WARM_PROCESSES"):
    sys.executable = os.path.join(os.environ["TUNESMITH_WARM_PROCESSES"], "python")
