"""Every process that computes waits passively for its threads."""

import pytest

from tunesmith.threads import thread_environment


def test_threads_wait_passively_after_a_short_spin(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert thread_environment(3) == {
        "OMP_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert "OMP_NUM_THREADS" not in thread_environment()


@pytest.mark.parametrize("value", ["0", "50000"])
def test_a_spin_count_of_the_user_is_kept(monkeypatch, value):
    monkeypatch.setenv("GOMP_SPINCOUNT", value)
    assert thread_environment()["GOMP_SPINCOUNT"] == value
