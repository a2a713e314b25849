"""Remote copies of the checkpoints, by URL: uploaded after the local commit, downloaded if the local disk lacks them.

The manifest is uploaded last: a directory without one is incomplete. A download is verified against its hashes before
it is committed.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.readers.storage import open_filesystem
from tunesmith.errors import RunFault, TunesmithError
from tunesmith.progress import progress_of
from tunesmith.rundir.commit import MANIFEST, adopt
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.paths import RunDir, step_of

T = TypeVar("T")

TRIES = 3
WAIT_S = 1.0
"""Before the second try; doubled before each later one."""


class Mirror:
    """The folder of one run below `url`: <url>/<name of the run directory>/step-00000100/...

    Raises InputError for an unsupported URL scheme. Every method raises RunFault if it still fails after TRIES tries.
    """

    def __init__(self, url: str, run: RunDir, attempt: int):
        self._url, self._name = url, run.root.resolve().name
        self._run, self._attempt = run, attempt
        self._opened: tuple[Any, str] | None = None

    @property
    def address(self) -> str:
        """URL of the folder, without user and password, for messages."""
        return f"{re.sub('//[^/]*@', '//', self._url).rstrip('/')}/{self._name}"

    def send(self, path: Path) -> str:
        """Upload a committed checkpoint, manifest last. Returns its address. Raises RunFault if the upload fails."""
        address = f"{self.address}/{path.name}"
        self._with_retries(
            lambda: self._send_once(path),
            what="the checkpoint could not be uploaded to its mirror",
            where=address,
            remedy=f"check network and credentials; the local checkpoint is complete: {path}",
        )
        return address

    def retain(self, kept: set[int]) -> None:
        """Delete checkpoints that are older than the newest kept one and not kept themselves; manifest first."""
        for step in self.steps():
            if step not in kept and step < max(kept, default=0):
                self._delete(step)

    def steps(self) -> list[int]:
        """Steps of the completely uploaded checkpoints, oldest first."""
        return self._with_retries(
            self._steps_once,
            what="the checkpoint mirror cannot be reached",
            where=self.address,
            remedy="check network and credentials, then resume the run",
        )

    def fetch(self, step: int) -> str | None:
        """Download a checkpoint into the run directory. Returns why it is damaged, None if it is valid.

        A damaged one stays in the mirror. Nothing remains locally of a damaged one or of a failed download (RunFault).
        """
        final = self._run.checkpoint(step)
        return self._with_retries(
            lambda: self._fetch_once(final),
            what=f"the checkpoint of step {step} could not be downloaded from its mirror",
            where=f"{self.address}/{final.name} to {final.parent}",
            remedy="check network, credentials and the disk space of the run directory, then resume the run",
        )

    def _delete(self, step: int) -> None:
        name = self._run.checkpoint(step).name
        self._with_retries(
            lambda: self._delete_once(name),
            what="an old checkpoint could not be deleted from the mirror",
            where=f"{self.address}/{name}",
            remedy="check network and credentials, and that they permit deletion",
        )

    def _with_retries(self, action: Callable[[], T], *, what: str, where: str, remedy: str) -> T:
        for number in range(1, TRIES + 1):
            try:
                return action()
            except TunesmithError:
                raise
            except Exception as error:  # every file system has its own exceptions
                if number == TRIES:
                    raise RunFault(f"{what}: {type(error).__name__}: {error}", where=where, remedy=remedy) from error
            time.sleep(WAIT_S * 2 ** (number - 1))
        raise AssertionError("unreachable")

    def _open(self) -> tuple[Any, str]:
        """The file system and the run's folder in it; opened on first use, since some connect when opened."""
        if self._opened is None:
            filesystem, path = open_filesystem(self._url)
            self._opened = filesystem, f"{path.rstrip('/')}/{self._name}"
        return self._opened

    def _send_once(self, path: Path) -> None:
        filesystem, root = self._open()
        target = f"{root}/{path.name}"
        filesystem.makedirs(target, exist_ok=True)
        for file in sorted(path.iterdir()):
            if file.name != MANIFEST:
                filesystem.put_file(str(file), f"{target}/{file.name}", callback=_per_block())
        fault_point("mirror.files")
        require_newest(self._run, self._attempt)
        filesystem.put_file(str(path / MANIFEST), f"{target}/{MANIFEST}")

    def _delete_once(self, name: str) -> None:
        filesystem, root = self._open()
        fault_point("mirror.delete")
        if _is_file(filesystem, f"{root}/{name}/{MANIFEST}"):
            filesystem.rm_file(f"{root}/{name}/{MANIFEST}")
        filesystem.invalidate_cache()
        filesystem.rm(f"{root}/{name}", recursive=True)

    def _steps_once(self) -> list[int]:
        filesystem, root = self._open()
        fault_point("mirror.list")
        filesystem.invalidate_cache()
        try:  # not `exists`, which returns False if the network fails
            folders = [Path(name.rstrip("/")) for name in filesystem.ls(root, detail=False)]
        except FileNotFoundError:
            return []
        steps = {step: folder for folder in folders if (step := step_of(folder)) is not None}
        return sorted(
            step for step, folder in steps.items() if _is_file(filesystem, f"{root}/{folder.name}/{MANIFEST}")
        )

    def _fetch_once(self, final: Path) -> str | None:
        filesystem, root = self._open()
        temporary = final.with_name(f"{final.name}.tmp.{self._attempt}")
        try:
            temporary.mkdir(exist_ok=True)
            for name in filesystem.find(f"{root}/{final.name}"):
                filesystem.get_file(name, str(temporary / Path(name).name), callback=_per_block())
            fault_point("mirror.fetched")
            return adopt(temporary, final, self._attempt)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _per_block() -> Any:
    """Return what a file system calls, in any thread, after each block that it has transferred for this one."""
    from fsspec.callbacks import Callback

    progress = progress_of(threading.get_ident())
    return Callback(hooks={"progress": lambda *_, **__: progress.advance()})


def _is_file(filesystem: Any, path: str) -> bool:
    try:
        filesystem.info(path)
    except FileNotFoundError:
        return False
    return True
