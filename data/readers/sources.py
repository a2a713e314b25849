"""Find data files, cut them into shards, and read their rows.

A shard is a part of a file that can be read independently: a range of bytes (.jsonl, .json, .csv, .txt) or of row
groups (.parquet, .arrow). Cutting reads the file once and hashes it; memory use does not depend on the file size.
Compressed files are cut in their decompressed copy.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.data.cache import cache_root
from tunesmith.data.readers import columnar, delimited, lists
from tunesmith.data.readers.compression import MAGIC, SUFFIXES, decompressed, is_compressed, suffix_of
from tunesmith.data.readers.directories import data_files
from tunesmith.data.readers.lines import Line, cut_lines, hash_range, is_utf16, read_lines, read_whole
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
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".md": "text",
}
_TEXT_KINDS = ("lines", "list", "csv", "text")


def resolve(names: Sequence[str], recipe_dir: Path) -> list[Path]:
    """Resolve paths, patterns, directories and URLs to files, without duplicates, in the given order (patterns sorted).

    A relative path is looked up in the recipe's directory, then in the working directory. Raises InputError with the
    paths tried if nothing matches.
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
                remedy="check the path; relative paths start at the recipe's directory or the working directory",
            )
    return list(files)


def cut(path: Path, delimiter: str | None = None) -> Iterator[Shard]:
    """Yield the shards of a file in order. delimiter: of CSV files; None to detect it. Raises InputError if the file is
    unreadable or of an unknown type."""
    _require_known(path)
    try:
        plain = decompressed(path, cache_root()) if is_compressed(path) else path
        kind = _kind(plain)
        if kind in _TEXT_KINDS:
            _require_utf8(plain, path)
        if kind == "csv":
            yield from delimited.cut_csv(plain, kind, delimiter or "")
        else:
            yield from _CUTS[kind](plain, kind)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except Refusal as refusal:
        raise InputError(refusal.reason, where=str(path), remedy=refusal.remedy) from refusal


def _require_utf8(plain: Path, path: Path) -> None:
    """Raise InputError for a file that is no UTF-8 text. path: the file as the user knows it."""
    with open(plain, "rb") as file:
        head = file.read(1024)
    if suffix := next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), None):
        remedy = f"rename it: {path.name}{suffix}" if suffix in SUFFIXES else "extract the files in it"
        raise InputError(f"the file is compressed ({suffix})", where=str(path), remedy=remedy)
    if is_utf16(head):
        raise InputError(
            "the file is UTF-16, not UTF-8",
            where=str(path),
            remedy=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}",
        )


def read(shard: Shard) -> Iterator[Line]:
    """Yield the rows of a shard; an invalid row has a Refusal as its value. Raises InputError if the file has changed
    since it was cut."""
    path = Path(shard.path)
    try:
        if shard.kind in _TEXT_KINDS:
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
    """Raise InputError if the content no longer matches the shard's hash, which the cache key depends on."""
    if hash_range(Path(shard.path), shard.start, shard.stop) != shard.sha256:
        raise InputError(
            "the file changed while it was being read",
            where=shard.path,
            remedy="wait until it is fully written, then run the command again; finished shards are cached",
        )


def _matches(place: Path) -> list[Path]:
    if place.is_dir():
        return _files_of(place)
    if place.exists():
        return [place]
    return sorted(path for match in glob.glob(str(place), recursive=True) for path in _matches(Path(match)))


def _files_of(directory: Path) -> list[Path]:
    """Return the data files of a directory, or of a Hugging Face dataset. Raises InputError if splits are mixed."""
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()]
    return [directory / name for name in data_files(names, tuple(KINDS), str(directory))]


def _require_known(path: Path) -> None:
    if suffix_of(path) not in KINDS:
        remedy = f"supported types: {', '.join(KINDS)}; each may be compressed: {', '.join(SUFFIXES)}"
        if is_compressed(path):
            remedy += f", as in rows.jsonl{path.suffix}"
        raise InputError(f"unknown file type {path.suffix!r}", where=str(path), remedy=remedy)


def _kind(path: Path) -> str:
    kind = KINDS[suffix_of(path)]
    if kind == "list" and _first_byte(path) != b"[":
        return "lines"  # JSON Lines with the suffix .json is common
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
    "parquet": columnar.cut_parquet,
    "arrow": columnar.cut_arrow,
}
_READS = {
    "lines": read_lines,
    "text": read_whole,
    "list": lists.read,
    "csv": delimited.read_csv,
    "parquet": columnar.read_parquet,
    "arrow": columnar.read_arrow,
}
