"""Random seeds as a function of (seed, step, rank): no generator state has to be saved or restored."""

import hashlib

import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for step number `step`: dropout and embedding noise depend on nothing else."""
    torch.manual_seed(derived_seed(seed, "step", step, rank))


def derived_seed(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed for one purpose, independent of that of any other."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
