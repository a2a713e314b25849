"""Pausing the garbage collector during imports."""

import gc

import pytest

from tunesmith.large_imports import garbage_collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_paused_and_restored(enabled):
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(ImportError), garbage_collection_paused():
            raise ImportError(gc.isenabled())
        assert gc.isenabled() is enabled
        with garbage_collection_paused():
            assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
