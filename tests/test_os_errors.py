"""Errors of the operating system are explained with the file, and with the free space of its disk."""

import errno
import os

import pytest

from tunesmith.os_errors import os_fault, remedy_for


@pytest.mark.parametrize(
    ("number", "what", "remedy"),
    [
        (errno.ENOSPC, "the disk is full", "free space"),
        (errno.EMFILE, "too many open files", "ulimit -n"),
        (errno.EFBIG, "larger than allowed", "ulimit -f"),
        (errno.ENAMETOOLONG, "too long", "shorter"),
    ],
)
def test_the_message_names_the_file_and_fits_the_error(tmp_path, number, what, remedy):
    path = tmp_path / "missing" / "file"
    fault = os_fault(OSError(number, os.strerror(number), str(path)))
    assert fault is not None
    assert what in fault.what
    assert fault.where is not None
    assert fault.where.startswith(str(path))
    assert remedy in str(fault.remedy)
    assert ("bytes free" in fault.where) == (number == errno.ENOSPC)
    assert "free" not in str(fault.remedy) or number == errno.ENOSPC  # no advice to delete data without need


def test_an_error_without_a_file_names_the_directory_of_the_program(tmp_path):
    fault = os_fault(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert fault is not None
    assert str(fault.where).startswith(f"{tmp_path} (")
    memory = os_fault(MemoryError(), tmp_path)
    assert memory is not None
    assert (memory.what, memory.where) == ("out of memory", str(tmp_path))


def test_other_errors_are_bugs():
    assert os_fault(ValueError("x")) is None
    assert os_fault(OSError(errno.EBADF, "Bad file descriptor")) is None


def test_the_remedy_of_a_caller_is_kept_only_where_it_helps():
    for number in (errno.EMFILE, errno.EFBIG, errno.ENOMEM, errno.EIO):
        assert "free" not in remedy_for(OSError(number, ""), "free disk space")
    for number in (errno.ENOSPC, errno.EACCES, errno.ENOTDIR):
        assert remedy_for(OSError(number, ""), "free disk space") == "free disk space"
