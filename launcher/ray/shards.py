"""Shards of rows prepared by tasks of a Ray cluster: the same pure function a shard, the same content-addressed cache.

The cache must lie where every machine sees it. A shard that is there is not made again, so what was killed in the
middle costs the shards in work.
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
"""Times that a shard whose task was killed is given to another one."""


def is_prepared(shard: Shard, encoder: RowEncoder, cache: Path) -> bool:
    return (cache / "shards" / shard_id(shard, encoder)).is_dir()


def prepare_on(ray: Any, shards: Sequence[Shard], encoder: RowEncoder, cache: Path) -> None:
    """Prepare every shard, each by a task of one core. Raises InputError as prepare_shard does, RunFault where tasks
    die again and again."""
    how = portable(encoder)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_prepare)
    waiting = [task.remote(how, str(cache), shard.portable()) for shard in shards]
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            for refused in filter(None, ray.get(ready)):
                what, where, remedy = refused
                raise InputError(what, where=where, remedy=remedy)
    except ray.exceptions.RayError as error:
        raise RunFault(
            f"a task that prepares data failed: {str(error).strip().splitlines()[-1][:300]}",
            where=f"{len(shards)} shards, cache {cache}",
            remedy="start again: shards that are done are kept",
        ) from error
    finally:
        for left in waiting:
            ray.cancel(left)


def prepared(shards: Sequence[Shard], encoder: RowEncoder, cache: Path, done: Callable[[Shard], None]) -> list[Path]:
    """The directories of shards that were prepared, each verified. Raises InputError where this machine does not see
    what another one made."""
    if unseen := [shard for shard in shards if not is_prepared(shard, encoder, cache)]:
        raise InputError(
            f"{len(unseen)} of {len(shards)} prepared shards are not to be seen from here",
            where=str(cache),
            remedy="set TUNESMITH_CACHE to a directory that every machine mounts at the same path",
        )
    directories = []
    for shard in shards:
        directories.append(prepare_shard(shard, encoder, cache))
        done(shard)
    return directories


def _prepare(how: str, cache: str, shard: str) -> tuple[str, str | None, str | None] | None:
    """The task. What the user can mend comes back as what, where and remedy; None where all went well."""
    try:
        prepare_shard(Shard.from_portable(shard), _encoder_from(how), Path(cache))
    except InputError as error:
        return error.what, error.where, error.remedy
    return None


_encoder_from = lru_cache(maxsize=4)(encoder_from)
"""A process of the cluster loads a tokenizer once."""
