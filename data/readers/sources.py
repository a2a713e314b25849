"""Files of rows: found, cut into shards, and read line by line, whatever stands in them.

A shard is a part of a file that can be read by itself: a range of bytes (.jsonl, .json, .csv, .txt) or of row groups
(.parquet, .arrow). Cutting reads the file once and hashes it; memory does not grow with the file.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.data.cache import cache_root
from tunesmith.data.readers import lists, tables
from tunesmith.data.readers.directories import data_files
from tunesmith.data.readers.lines import Line, cut_lines, hash_range, read_lines, read_whole
from tunesmith.data.readers.shard import Shard
from tunesmith.data.readers.storage import fetch, is_url
from tunesmith.data.refusal import Refusal
from tunesmith.errors import InputError

KINDS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "list",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
}


def resolve(names: Sequence[str], recipe_dir: Path) -> list[Path]:
    """The files that paths, patterns, directories and URLs stand for, each once, in the order given (patterns sorted).

    A relative path is looked up beside the recipe, then in the working directory. Raises InputError telling what was
    tried where nothing is there.
    """
    files: dict[Path, None] = {}
    for name in names:
        if is_url(name):
            files.update(dict.fromkeys(fetch(name, tuple(KINDS), cache_root())))
            continue
        expanded = os.path.expanduser(name)
        tried = list(dict.fromkeys(Path(base, expanded) for base in (recipe_dir, Path.cwd())))
        for place in tried:
            paths = _matches(place)
            if paths:
                files.update(dict.fromkeys(path.resolve() for path in paths))
                break
        else:
            raise InputError(
                f"no data found for {name!r}",
                where="tried " + ", ".join(str(place) for place in tried),
                remedy="check the path; relative paths start at the recipe's folder, then at the working directory",
            )
    return list(files)


def cut(path: Path) -> Iterator[Shard]:
    """The shards of a file in order. Raises InputError where the file cannot be read or is of no known kind."""
    kind = _kind(path)
    try:
        yield from _CUTS[kind](path, kind)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except Refusal as refusal:
        raise InputError(refusal.reason, where=str(path), remedy=refusal.remedy) from refusal


def read(shard: Shard) -> Iterator[Line]:
    """The rows of a shard; one that cannot be read comes with a Refusal in its place. Raises InputError where the file
    is not what was cut."""
    path = Path(shard.path)
    try:
        if shard.kind in ("lines", "list", "csv", "text"):
            _check_unchanged(shard)
        yield from _READS[shard.kind](shard)
    except OSError as error:  # pyarrow's errors for damaged files among them
        raise unreadable(path, error.strerror or str(error)) from error
    except Refusal as refusal:
        raise InputError(refusal.reason, where=str(path), remedy=refusal.remedy) from refusal


def unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"the file cannot be read: {reason}", where=str(path), remedy="check the file and its permissions"
    )


def _check_unchanged(shard: Shard) -> None:
    """A file that changes while it is read would give rows that no hash stands for."""
    if hash_range(Path(shard.path), shard.start, shard.stop) != shard.sha256:
        raise InputError(
            "the file changed while it was being read",
            where=shard.path,
            remedy="let whatever writes it finish, then start again: shards that are done are kept",
        )


def _matches(place: Path) -> list[Path]:
    if place.is_dir():
        return _files_of(place)
    if place.exists():
        return [place]
    return sorted(path for match in glob.glob(str(place), recursive=True) for path in _matches(Path(match)))


def _files_of(directory: Path) -> list[Path]:
    """The data files of a directory, a Hugging Face dataset's too. Raises InputError where splits are mixed."""
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()]
    return [directory / name for name in data_files(names, tuple(KINDS), str(directory))]


def _kind(path: Path) -> str:
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"unknown kind of file {path.suffix!r}",
            where=str(path),
            remedy=f"the kinds are {', '.join(KINDS)}; packed files have to be unpacked first",
        )
    if kind == "list" and _first_byte(path) != b"[":
        return "lines"  # JSON Lines under the name .json is common
    return kind


def _first_byte(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


_CUTS = {
    "lines": cut_lines,
    "text": cut_lines,
    "list": lists.cut,
    "csv": tables.cut_csv,
    "parquet": tables.cut_parquet,
    "arrow": tables.cut_arrow,
}
_READS = {
    "lines": read_lines,
    "text": read_whole,
    "list": lists.read,
    "csv": tables.read_csv,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
}
