"""The files that travel to a GPU stay below their limit."""

import tarfile
import zipfile

import pytest

from benchmarks.gpu import carried

PACKAGES_BYTES = 30 << 20
"""Room for the packages; 23 MiB when they were fetched in November 2026."""


def test_the_checkout_leaves_room_for_the_packages(tmp_path):
    files = carried.carried(packages=tmp_path)
    assert carried.ROOT / "benchmarks" / "gpu" / "acceptance.py" in files
    assert carried.ROOT / "tests" / "kernels" / "interpreted" / "test_losses.py" in files
    assert carried.require_small(files) + PACKAGES_BYTES <= carried.LIMIT_BYTES


def test_packages_count(tmp_path):
    (tmp_path / "cp312" / "__pycache__").mkdir(parents=True)
    (tmp_path / "cp312" / "module.py").write_bytes(b"x" * 100)
    (tmp_path / "cp312" / "__pycache__" / "module.pyc").write_bytes(b"x" * 100)
    more = carried.carried(packages=tmp_path).keys() - carried.carried(packages=tmp_path / "none").keys()
    assert more == {tmp_path / "cp312" / "module.py"}


def test_too_much_is_an_error_that_names_the_largest_file(tmp_path):
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    with pytest.raises(carried.TooLarge, match=r"61\.0 MiB, the limit is 60; the largest files: large\.bin"):
        carried.require_small({small: 1 << 20, large: 60 << 20})
    assert carried.require_small({small: 1 << 20, large: 59 << 20}) == 60 << 20


def test_an_archive_has_paths_relative_to_the_checkout(tmp_path):
    file = tmp_path / "root" / "kernels" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text("content")
    carried.pack({file: 7}, tmp_path / "all.tar.gz", tmp_path / "root")
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        assert archive.getnames() == ["kernels/a.py"]


def test_only_one_compiled_library_of_bitsandbytes_is_unpacked(tmp_path):
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = ["bitsandbytes/nn.py", "bitsandbytes/libbitsandbytes_cuda118.so", f"bitsandbytes/{carried.KEPT_LIBRARY}"]
    with zipfile.ZipFile(wheel, "w") as content:
        for name in names:
            content.writestr(name, "x")
    carried.unpack(wheel, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == [carried.KEPT_LIBRARY, "nn.py"]
