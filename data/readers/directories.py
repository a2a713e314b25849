"""Select the data files of a directory by name, for local directories and URLs alike."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from tunesmith.errors import InputError

_IGNORED = ("dataset_info.json", "state.json", "dataset_dict.json", "README.md")
_HELD_OUT = ("valid", "test", "eval", "dev")


def data_files(names: Sequence[str], suffixes: Sequence[str], where: str) -> list[str]:
    """Return the files with one of the suffixes, sorted; for a Hugging Face dataset, only its tables.

    names: all files under the directory, as relative paths with slashes. where: the directory, for errors. Raises
    InputError if splits are mixed.
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
    files = [path for path in paths if path.suffix.lower() in suffixes and path.name not in _IGNORED]
    held_out = [path for path in files if any(word in path.stem.lower() for word in _HELD_OUT)]
    if held_out and len(held_out) < len(files):
        raise InputError(
            f"the directory mixes training files with validation or test files ({held_out[0].name})",
            where=where,
            remedy="list the training files in data.train and the others in data.validation",
        )
    return list(map(str, files))
