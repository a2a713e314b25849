"""Fixtures of the launcher's tests: runs without training."""

from tests.launcher.conftest import a_model, a_recipe, make_run, some_data

__all__ = ["a_model", "a_recipe", "make_run", "some_data"]
