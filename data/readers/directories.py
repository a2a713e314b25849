"""Select the data files of a directory by name, for local directories and URLs alike."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from tunesmith.data.readers.compression import suffix_of
from tunesmith.errors import InputError

_IGNORED = ("dataset_info.json", "state.json", "dataset_dict.json", "README.md")
_HELD_OUT = {
    *("valid", "validation", "validset", "val", "test", "tests", "testing", "testset"),
    *("eval", "evaluation", "evalset", "dev", "devset", "heldout"),
}
"""Words in the name of a file or folder with rows that are not trained."""
_WORD = re.compile(r"[a-z]+")


def data_files(names: Sequence[str], suffixes: Sequence[str], where: str) -> list[str]:
    """Return the files with one of the suffixes, sorted; for a Hugging Face dataset, only its tables.

    names: all files under the directory, as relative paths with slashes. where: the directory, for errors. Hidden files
    and folders (`.git`, `.ipynb_checkpoints`) are skipped. Raises InputError if splits are mixed.
    """
    if "dataset_dict.json" in names:
        splits = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise InputError(
            "the directory contains several splits of a dataset",
            where=where,
            remedy="name one of them: " + ", ".join(f"{where.rstrip('/')}/{split}" for split in splits),
        )
    paths = sorted(map(PurePosixPath, names))
    if "state.json" in names:
        return [str(path) for path in paths if len(path.parts) == 1 and path.suffix == ".arrow"]
    files = [
        path for path in paths if suffix_of(path) in suffixes and path.name not in _IGNORED and not _is_hidden(path)
    ]
    held_out = [path for path in files if _is_held_out(path)]
    if held_out and len(held_out) < len(files):
        raise InputError(
            f"the directory mixes training files with validation or test files ({held_out[0]})",
            where=where,
            remedy="list the training files in data.train and the others in data.validation",
        )
    return list(map(str, files))


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_held_out(path: PurePosixPath) -> bool:
    """Whether the file's name or that of a folder says so: "test" as a word of its own, not in "latest_orders"."""
    for part in (*path.parent.parts, path.stem):
        words = set(_WORD.findall(part.lower()))
        if words & _HELD_OUT and not any(word.startswith("train") for word in words):
            return True
    return False
