"""Prepares shards of rows by tasks of a Ray cluster, with the same pure function and the same content-addressed cache.

All nodes must be able to access the cache. Existing shards are not prepared again, so an interruption loses only the
shards in progress.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.data.encoders.by_task import encoder_from, portable
from tunesmith.data.encoders.encoder import RowEncoder
from tunesmith.data.index.shard import prepare_shard, shard_id
from tunesmith.data.readers.shard import Shard
from tunesmith.errors import InputError, RunFault

RETRIES = 3
"""How often a shard is retried if its task was killed."""


def is_prepared(shard: Shard, encoder: RowEncoder, cache: Path) -> bool:
    return (cache / "shards" / shard_id(shard, encoder)).is_dir()


def prepare_on(ray: Any, shards: Sequence[Shard], encoder: RowEncoder, cache: Path) -> None:
    """Prepare every shard, each by a task with one core. Raises InputError like prepare_shard, RunFault if a task fails
    repeatedly."""
    how = portable(encoder)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_prepare)
    waiting = [task.remote(how, str(cache), shard.portable()) for shard in shards]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            for what, where, remedy in filter(None, ray.get(ready)):
                raise InputError(what, where=where, remedy=remedy)
    except ray.exceptions.RayError as error:
        raise RunFault(
            f"a task that prepares data failed: {str(error).strip().splitlines()[-1][:300]}",
            where=f"{len(shards)} shards, cache {cache}",
            remedy="run the same command again: finished shards are kept",
        ) from error
    finally:
        for pending in waiting:
            ray.cancel(pending)


def prepared(shards: Sequence[Shard], encoder: RowEncoder, cache: Path, done: Callable[[Shard], None]) -> list[Path]:
    """Return the directories of the prepared shards after verifying each. Raises InputError if this machine cannot
    access shards that another one has prepared."""
    if missing := [shard for shard in shards if not is_prepared(shard, encoder, cache)]:
        raise InputError(
            f"{len(missing)} of {len(shards)} prepared shards are not accessible from this machine",
            where=str(cache),
            remedy="set TUNESMITH_CACHE to a directory that every machine mounts at the same path",
        )
    directories = []
    for shard in shards:
        directories.append(prepare_shard(shard, encoder, cache))
        done(shard)
    return directories


def _prepare(how: str, cache: str, shard: str) -> tuple[str, str | None, str | None] | None:
    """The task. Returns what, where and remedy of an InputError, None on success."""
    try:
        prepare_shard(Shard.from_portable(shard), _encoder_from(how), Path(cache))
    except InputError as error:
        return error.what, error.where, error.remedy
    return None


_encoder_from = lru_cache(maxsize=4)(encoder_from)
"""Cached, so that a process of the cluster loads a tokenizer only once."""
