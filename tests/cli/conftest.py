"""Runs without training, as the launcher's tests make them."""

from tests.launcher.conftest import a_model, a_recipe, make_run, some_data

__all__ = ["a_model", "a_recipe", "make_run", "some_data"]
