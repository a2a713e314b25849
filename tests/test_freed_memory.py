"""The C library returns freed memory to the system on request, and large blocks at once."""

import subprocess
import sys

import pytest

FRAGMENTED = """
import sys
from tunesmith.freed_memory import keep_no_large_blocks, return_freed_memory

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) >> 10

if sys.argv[1] == "large":
    keep_no_large_blocks()
bytearray(24 << 20)  # glibc raises its threshold to the size of a freed block
kept, before = [], resident()
for number in range(40):  # large blocks that are freed, each followed by a small one that stays
    block = bytearray(b"1") * (8 << 20)
    kept.append(bytearray(b"1") * (64 << 10))
    kept.append(block)
del block
kept = kept[::2]
between = resident() - before
return_freed_memory()
print(between, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_returned():
    def run(mode: str) -> tuple[int, int]:
        command = [sys.executable, "-c", FRAGMENTED, mode]
        between, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(between), int(after)

    between, after = run("default")
    assert between > 200  # of 320 MiB, between blocks that are in use
    assert after < 40
    between, after = run("large")
    assert between < 40
    assert after < 40
