"""These tests run Triton's kernels in its interpreter, which must be chosen before triton is imported: so they have a
process of their own, started by ../test_interpreted.py, and are not collected in any other."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
