"""The server's directory: what it keeps of uploads and jobs is readable by its own user only."""

from pathlib import Path


def open_home(home: Path) -> None:
    """Create the directory if it does not exist, and make the directory of its jobs private.

    A home that existed before keeps its mode: it may hold other things. Job directories hold copies of uploaded rows.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    jobs = home / "jobs"
    jobs.mkdir(exist_ok=True)
    jobs.chmod(0o700)
