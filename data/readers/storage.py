"""Files beyond the local disk, by URL: s3://, gs://, https://, file:// and whatever else fsspec opens.

A file of rows is fetched once into the cache, whole and verified, and read from there; the address that it came from
stands beside it and takes the place of its path in receipts and fingerprints.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.cache import build_once
from tunesmith.data.readers.directories import data_files
from tunesmith.errors import InputError

_URL = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://")
_ADDRESS = "address.txt"
_FETCHED = "fetched"
_TOLD = ("size", "ETag", "Last-Modified", "Content-MD5", "Digest")
"""What an HTTP server tells of a file; fsspec's own key of such a file is its address alone."""


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def open_place(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises InputError for a scheme that cannot be opened."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        remedy = f"install it beside Tunesmith: {error}"
        raise InputError(f"{_scheme(url)}:// needs a package of its own", where=url, remedy=remedy) from error
    except ValueError as error:
        remedy = "the usual schemes are s3://, gs://, https:// and file://"
        raise InputError(f"the place cannot be opened: {error}", where=url, remedy=remedy) from error


def fetch(url: str, suffixes: Sequence[str], cache: Path) -> list[Path]:
    """Local copies of the files that a URL stands for: one, a pattern's, or those of a directory with such a suffix.

    A file that is in the cache already, and the same over there by what the file system tells of it, is not fetched
    again. Raises InputError where nothing is there, it cannot be read, or a directory mixes splits.
    """
    place, path = open_place(url)
    try:
        paths = _matches(place, path, suffixes)
        files = [_fetch_one(place, path, cache) for path in paths]
    except InputError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise InputError(
            f"the data cannot be fetched: {type(error).__name__}: {error}",
            where=url,
            remedy="check the address, your credentials and the network",
        ) from error
    if not files:
        raise InputError(f"no data found for {url!r}", where=url, remedy="check the address; patterns may use * and **")
    return files


def address_of(path: Path) -> str | None:
    """Where a file of the cache was fetched from; None for any other file."""
    if path.parent.parent.name != _FETCHED:
        return None
    try:
        return (path.parent / _ADDRESS).read_text(encoding="utf-8")
    except OSError:
        return None


def _matches(place: Any, path: str, suffixes: Sequence[str]) -> list[str]:
    if any(character in path for character in "*[") and not place.exists(path):
        return sorted(p for p in place.glob(path) if not place.isdir(p))
    if place.isdir(path):
        within = {p.removeprefix(path.rstrip("/")).lstrip("/"): p for p in place.find(path)}
        return [within[name] for name in data_files(list(within), suffixes, place.unstrip_protocol(path))]
    return [path] if place.exists(path) else []


def _fetch_one(place: Any, path: str, cache: Path) -> Path:
    address, facts = place.unstrip_protocol(path), place.info(path)
    name, size = Path(urlsplit(path).path).name, facts.get("size")
    key = "\n".join([address, str(place.ukey(path)), *(str(facts.get(fact)) for fact in _TOLD)])
    entry = cache / _FETCHED / sha256(key.encode()).hexdigest()

    def write(directory: Path) -> None:
        place.get_file(path, str(directory / name))
        got = (directory / name).stat().st_size
        if size is not None and got != size:
            raise InputError(
                f"only {got} of {size} bytes came", where=address, remedy="try again; check that nobody writes the file"
            )
        (directory / _ADDRESS).write_text(address, encoding="utf-8")

    return build_once(entry, write) / name


def _scheme(url: str) -> str:
    return url.partition("://")[0]
