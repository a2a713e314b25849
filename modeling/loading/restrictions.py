"""Restrictions of the process that reads untrusted files: system calls, writes, memory and time. Linux only.

They come in addition to `torch.load(weights_only=True)`, and hold if that has a flaw. None needs privileges, and a
process cannot lift them. Sources: seccomp(2), landlock(7), setrlimit(2).
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_ALLOW, _DENY, _UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026  # the latter two: EPERM, ENOSYS
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # opcodes of classic BPF
_CLONE_THREAD = 0x10000
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_DENIED = {
    # socket, fork, vfork, execve, ptrace, execveat, io_uring_setup; aarch64 has only clone instead of fork and vfork
    "x86_64": (41, 57, 58, 59, 101, 322, 425),
    "aarch64": (198, 221, 117, 281, 425),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITES_BY_ABI = ((1, 0b1111111110010), (2, 1 << 13), (3, 1 << 14))
"""Rights of Landlock that change files, by the version that knows them: write, remove, create; refer; truncate."""


def restrict(writable: Path, *, memory_bytes: int, file_bytes: int, cpu_s: int) -> dict[str, bool]:
    """Restrict this thread, and all threads that it starts from now on, permanently.

    writable: the only directory that it can still change. memory_bytes: limit of its address space. file_bytes: of each
    written file. cpu_s: of its processor time. Returns what is in force: `network` (no sockets), `programs` (none is
    started), `writes` (only to `writable`), `resources`.
    """
    ended_with_parent = _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    writes = ended_with_parent and _allow_writes(writable)
    calls = ended_with_parent and _filter_calls()
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    return {"network": calls, "programs": calls, "writes": writes, "resources": True}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> bool:
    if sys.platform != "linux":
        return False
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _libc().prctl(option, *values) == 0


def _filter_calls() -> bool:
    """Let system calls fail that open sockets, start processes or programs, or control other processes."""
    machine = platform.machine()
    if machine not in _MACHINES:
        return False
    program = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_JUMP_IF_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, 0),  # the call's number
    ]
    if machine == "x86_64":  # numbers of the x32 interface, which would pass the comparisons
        program += [(_JUMP_IF_ANY_BIT, 0, 1, 0x40000000), (_RETURN, 0, 0, _DENY)]
    for number in _DENIED[machine]:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    program += [
        (_JUMP_IF_EQUAL, 0, 1, _CLONE3),  # its flags are in memory; the C library then uses clone
        (_RETURN, 0, 0, _UNKNOWN),
        (_JUMP_IF_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, 16),  # the flags: threads are allowed
        (_JUMP_IF_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _DENY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filtering = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(filtering, len(filtering))
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(argument))


def _allow_writes(directory: Path) -> bool:
    """Let every change of files outside a directory fail. False if the kernel has no Landlock."""
    libc = _libc()
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if abi < 1:
        return False
    rights = sum(bits for version, bits in _WRITES_BY_ABI if version <= abi)
    handled = ctypes.create_string_buffer(struct.pack("Q", rights), 8)
    ruleset = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    opened = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened), 12)
        added = libc.syscall(_ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint32(0)) == 0
        return added and libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) == 0
    finally:
        os.close(opened)
        os.close(ruleset)
