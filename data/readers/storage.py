"""Remote files by URL: s3://, gs://, https://, file:// and every other scheme that fsspec supports.

A data file is downloaded to the cache once, verified, and read from there. Its address is stored next to it and
replaces its path in receipts and fingerprints.
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
_VERSION_FIELDS = ("size", "ETag", "Last-Modified", "Content-MD5", "Digest")
"""File metadata that identifies a version; for HTTP, fsspec's own key of a file is only its address."""


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Raises InputError for an unsupported scheme."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        remedy = f"install it: {error}"
        raise InputError(f"{_scheme(url)}:// requires an additional package", where=url, remedy=remedy) from error
    except ValueError as error:
        remedy = "common schemes are s3://, gs://, https:// and file://"
        raise InputError(f"the URL cannot be opened: {error}", where=url, remedy=remedy) from error


def fetch(url: str, suffixes: Sequence[str], cache: Path) -> list[Path]:
    """Download the files of a URL: a file, a pattern, or a directory's files with one of the suffixes.

    Returns the paths of the local copies. A cached file is not downloaded again while its metadata on the remote file
    system is unchanged. Raises InputError if nothing matches, a file is unreadable, or a directory mixes splits.
    """
    filesystem, path = open_filesystem(url)
    try:
        paths = _matches(filesystem, path, suffixes)
        files = [_fetch_one(filesystem, path, cache) for path in paths]
    except InputError:
        raise
    except Exception as error:  # each file system raises different errors
        raise InputError(
            f"the data cannot be downloaded: {type(error).__name__}: {error}",
            where=url,
            remedy="check the URL, your credentials and the network",
        ) from error
    if not files:
        raise InputError(f"no data found for {url!r}", where=url, remedy="check the URL; patterns may use * and **")
    return files


def address_of(path: Path) -> str | None:
    """Return the address that a cached file was downloaded from; None for any other file."""
    if path.parent.parent.name != _FETCHED:
        return None
    try:
        return (path.parent / _ADDRESS).read_text(encoding="utf-8")
    except OSError:
        return None


def _matches(filesystem: Any, path: str, suffixes: Sequence[str]) -> list[str]:
    if any(character in path for character in "*[") and not filesystem.exists(path):
        return sorted(p for p in filesystem.glob(path) if not filesystem.isdir(p))
    if filesystem.isdir(path):
        within = {p.removeprefix(path.rstrip("/")).lstrip("/"): p for p in filesystem.find(path)}
        return [within[name] for name in data_files(list(within), suffixes, filesystem.unstrip_protocol(path))]
    return [path] if filesystem.exists(path) else []


def _fetch_one(filesystem: Any, path: str, cache: Path) -> Path:
    address, facts = filesystem.unstrip_protocol(path), filesystem.info(path)
    name, size = Path(urlsplit(path).path).name, facts.get("size")
    key = "\n".join([address, str(filesystem.ukey(path)), *(str(facts.get(fact)) for fact in _VERSION_FIELDS)])
    entry = cache / _FETCHED / sha256(key.encode()).hexdigest()

    def write(directory: Path) -> None:
        filesystem.get_file(path, str(directory / name))
        received = (directory / name).stat().st_size
        if size is not None and received != size:
            raise InputError(
                f"incomplete download: {received:,} of {size:,} bytes",
                where=address,
                remedy="try again, and check that the file is not being written",
            )
        (directory / _ADDRESS).write_text(address, encoding="utf-8")

    return build_once(entry, write) / name


def _scheme(url: str) -> str:
    return url.partition("://")[0]
