"""A second home of the checkpoints, by URL: sent there after the local commit, and fetched where the local disk is new.

The manifest is sent last, so that a directory without one does not count; what is fetched is verified byte by byte
before it gets its name.
"""

import time
from pathlib import Path

from tunesmith.data.storage import open_place
from tunesmith.errors import RunFault, TunesmithError
from tunesmith.rundir.commit import MANIFEST, adopt, fault_point
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.paths import RunDir, step_of

TRIES = 3
WAIT_S = 1.0
"""Before the second try; doubled before each further one."""


class Mirror:
    """The folder of one run below `url`: <url>/<name of the run directory>/step-00000100/... Raises InputError for a
    scheme that cannot be opened."""

    def __init__(self, url: str, run: RunDir, attempt: int):
        self._place, path = open_place(url)
        self._root = f"{path.rstrip('/')}/{run.root.resolve().name}"
        self._run, self._attempt = run, attempt

    @property
    def address(self) -> str:
        return self._place.unstrip_protocol(self._root)

    def send(self, path: Path) -> str:
        """Send a committed checkpoint, manifest last; its address. Raises RunFault where it does not arrive."""
        target = f"{self._root}/{path.name}"
        for number in range(1, TRIES + 1):
            try:
                self._send_once(path, target)
                return self._place.unstrip_protocol(target)
            except TunesmithError:
                raise
            except Exception as error:  # each file system has errors of its own
                if number == TRIES:
                    raise RunFault(
                        f"the checkpoint could not be sent to its mirror: {type(error).__name__}: {error}",
                        where=self._place.unstrip_protocol(target),
                        remedy=f"check network and credentials; {path} is whole",
                    ) from error
            time.sleep(WAIT_S * 2 ** (number - 1))
        raise AssertionError("unreachable")

    def retain(self, kept: set[int]) -> None:
        """Delete older checkpoints than the newest kept one that are not kept; the manifest goes first."""
        for step in self.steps():
            if step not in kept and step < max(kept, default=0):
                folder = f"{self._root}/{self._run.checkpoint(step).name}"
                self._place.rm_file(f"{folder}/{MANIFEST}")
                self._place.rm(folder, recursive=True)

    def steps(self) -> list[int]:
        """The checkpoints that arrived whole, by what their names say, oldest first."""
        self._place.invalidate_cache()
        if not self._place.exists(self._root):
            return []
        folders = [Path(name.rstrip("/")) for name in self._place.ls(self._root, detail=False)]
        steps = {step: folder for folder in folders if (step := step_of(folder)) is not None}
        return sorted(step for step, folder in steps.items() if self._has_manifest(folder.name))

    def fetch(self, step: int) -> str | None:
        """Bring a checkpoint into the run directory under its own name; what is wrong with it, None where nothing is.

        A damaged one is left where it is, and nothing of it stays here.
        """
        final = self._run.checkpoint(step)
        temporary = final.with_name(f"{final.name}.tmp.{self._attempt}")
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            for name in self._place.find(f"{self._root}/{final.name}"):
                self._place.get_file(name, str(temporary / Path(name).name))
            fault_point("mirror.fetched")
        except Exception as error:
            return f"it cannot be fetched ({type(error).__name__}: {error})"
        return adopt(temporary, final, self._attempt)

    def _send_once(self, path: Path, target: str) -> None:
        self._place.makedirs(target, exist_ok=True)
        for file in sorted(path.iterdir()):
            if file.name != MANIFEST:
                self._place.put_file(str(file), f"{target}/{file.name}")
        fault_point("mirror.files")
        require_newest(self._run, self._attempt)
        self._place.put_file(str(path / MANIFEST), f"{target}/{MANIFEST}")

    def _has_manifest(self, name: str) -> bool:
        return bool(self._place.exists(f"{self._root}/{name}/{MANIFEST}"))
