"""A second home of the checkpoints, by URL: sent there after the local commit, and fetched where the local disk is new.

The manifest is sent last, so that a directory without one does not count; what is fetched is verified byte by byte
before it gets its name.
"""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.readers.storage import open_place
from tunesmith.errors import RunFault, TunesmithError
from tunesmith.rundir.commit import MANIFEST, adopt, fault_point
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.paths import RunDir, step_of

T = TypeVar("T")

TRIES = 3
WAIT_S = 1.0
"""Before the second try; doubled before each further one."""


class Mirror:
    """The folder of one run below `url`: <url>/<name of the run directory>/step-00000100/...

    Raises InputError for a scheme that cannot be opened. Every method raises RunFault where the place cannot be
    reached after TRIES tries.
    """

    def __init__(self, url: str, run: RunDir, attempt: int):
        self._url, self._name = url, run.root.resolve().name
        self._run, self._attempt = run, attempt
        self._opened: tuple[Any, str] | None = None

    @property
    def address(self) -> str:
        """For people: without what a URL may hold of user and password."""
        return f"{re.sub('//[^/]*@', '//', self._url).rstrip('/')}/{self._name}"

    def send(self, path: Path) -> str:
        """Send a committed checkpoint, manifest last; its address. Raises RunFault where it does not arrive."""
        address = f"{self.address}/{path.name}"
        self._with_retries(
            lambda: self._send_once(path),
            what="the checkpoint could not be sent to its mirror",
            where=address,
            remedy=f"check network and credentials; {path} is whole",
        )
        return address

    def retain(self, kept: set[int]) -> None:
        """Delete older checkpoints than the newest kept one that are not kept; the manifest goes first."""
        for step in self.steps():
            if step not in kept and step < max(kept, default=0):
                self._delete(step)

    def steps(self) -> list[int]:
        """The checkpoints that arrived whole, by what their names say, oldest first."""
        return self._with_retries(
            self._steps_once,
            what="the mirror of the checkpoints cannot be reached",
            where=self.address,
            remedy="check network and credentials, then resume the run",
        )

    def fetch(self, step: int) -> str | None:
        """Bring a checkpoint into the run directory under its own name; what is wrong with it, None where nothing is.

        A damaged one is left where it is, and nothing of it stays here; nor does anything of one that cannot be
        fetched (RunFault).
        """
        final = self._run.checkpoint(step)
        return self._with_retries(
            lambda: self._fetch_once(final),
            what=f"the checkpoint of step {step} could not be fetched from its mirror",
            where=f"{self.address}/{final.name} to {final.parent}",
            remedy="check network, credentials and the space on the disk of the run directory, then resume the run",
        )

    def _delete(self, step: int) -> None:
        name = self._run.checkpoint(step).name
        self._with_retries(
            lambda: self._delete_once(name),
            what="an old checkpoint could not be deleted in the mirror",
            where=f"{self.address}/{name}",
            remedy="check network and credentials, and whether they allow to delete there",
        )

    def _with_retries(self, action: Callable[[], T], *, what: str, where: str, remedy: str) -> T:
        for number in range(1, TRIES + 1):
            try:
                return action()
            except TunesmithError:
                raise
            except Exception as error:  # each file system has errors of its own
                if number == TRIES:
                    raise RunFault(f"{what}: {type(error).__name__}: {error}", where=where, remedy=remedy) from error
            time.sleep(WAIT_S * 2 ** (number - 1))
        raise AssertionError("unreachable")

    def _open(self) -> tuple[Any, str]:
        """The file system and the run's folder in it; opened at the first use, since some connect as they open."""
        if self._opened is None:
            place, path = open_place(self._url)
            self._opened = place, f"{path.rstrip('/')}/{self._name}"
        return self._opened

    def _send_once(self, path: Path) -> None:
        place, root = self._open()
        target = f"{root}/{path.name}"
        place.makedirs(target, exist_ok=True)
        for file in sorted(path.iterdir()):
            if file.name != MANIFEST:
                place.put_file(str(file), f"{target}/{file.name}")
        fault_point("mirror.files")
        require_newest(self._run, self._attempt)
        place.put_file(str(path / MANIFEST), f"{target}/{MANIFEST}")

    def _delete_once(self, name: str) -> None:
        place, root = self._open()
        fault_point("mirror.delete")
        if _is_file(place, f"{root}/{name}/{MANIFEST}"):
            place.rm_file(f"{root}/{name}/{MANIFEST}")
        place.invalidate_cache()
        place.rm(f"{root}/{name}", recursive=True)

    def _steps_once(self) -> list[int]:
        place, root = self._open()
        fault_point("mirror.list")
        place.invalidate_cache()
        try:  # not `exists`, which takes a network that fails for a no
            folders = [Path(name.rstrip("/")) for name in place.ls(root, detail=False)]
        except FileNotFoundError:
            return []
        steps = {step: folder for folder in folders if (step := step_of(folder)) is not None}
        return sorted(step for step, folder in steps.items() if _is_file(place, f"{root}/{folder.name}/{MANIFEST}"))

    def _fetch_once(self, final: Path) -> str | None:
        place, root = self._open()
        temporary = final.with_name(f"{final.name}.tmp.{self._attempt}")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            for name in place.find(f"{root}/{final.name}"):
                place.get_file(name, str(temporary / Path(name).name))
            fault_point("mirror.fetched")
            return adopt(temporary, final, self._attempt)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_file(place: Any, path: str) -> bool:
    try:
        place.info(path)
    except FileNotFoundError:
        return False
    return True
