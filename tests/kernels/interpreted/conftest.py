"""These tests run Triton kernels in the interpreter, which must be enabled before triton is imported. They are
therefore only collected in a separate process, started by ../test_interpreted.py."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
