"""Which files of a directory are rows to train on, by their names alone: the same here and behind a URL."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from tunesmith.errors import InputError

_IGNORED = ("dataset_info.json", "state.json", "dataset_dict.json", "README.md")
_HELD_OUT = ("valid", "test", "eval", "dev")


def data_files(names: Sequence[str], suffixes: Sequence[str], where: str) -> list[str]:
    """Of the files in and under a directory, those with such a suffix, in order; a Hugging Face dataset's tables alone.

    names: relative to the directory, with slashes. where: the directory, for errors. Raises InputError where splits are
    mixed.
    """
    if "dataset_dict.json" in names:
        splits = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise InputError(
            "the directory holds several splits of a dataset",
            where=where,
            remedy="name one of them: " + ", ".join(f"{where.rstrip('/')}/{split}" for split in splits),
        )
    paths = sorted(map(PurePosixPath, names))
    if "state.json" in names:
        return [str(path) for path in paths if len(path.parts) == 1 and path.suffix == ".arrow"]
    files = [path for path in paths if path.suffix.lower() in suffixes and path.name not in _IGNORED]
    held_out = [path for path in files if any(word in path.stem.lower() for word in _HELD_OUT)]
    if held_out and len(held_out) < len(files):
        raise InputError(
            f"the directory holds files for validation or test beside others ({held_out[0].name})",
            where=where,
            remedy="name the files to train on, and the others under data.validation",
        )
    return list(map(str, files))
