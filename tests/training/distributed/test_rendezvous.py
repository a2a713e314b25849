"""Deadlines of the rendezvous."""

from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.rendezvous import Rendezvous


def test_the_first_collectives_on_gpus_get_more_time(monkeypatch, free_port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    monkeypatch.setenv("TUNESMITH_START_TIMEOUT_S", "30")
    errors = []
    rendezvous = Rendezvous(Ranks(0, 0, 2), 1, errors.append)
    rendezvous._deadline = 0.0
    assert rendezvous.timed_out
    first = rendezvous._guard
    rendezvous.allow(180.0)
    assert not rendezvous.timed_out
    assert first.finished.is_set()  # cancelled
    assert rendezvous._guard.interval > 180.0
    assert "timed out after 180 s" in rendezvous._timeout_fault().what
    rendezvous.complete()
    assert rendezvous._guard.finished.is_set()
    assert not errors


def test_a_longer_limit_of_the_user_is_kept(monkeypatch, free_port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    monkeypatch.setenv("TUNESMITH_START_TIMEOUT_S", "600")
    rendezvous = Rendezvous(Ranks(0, 0, 2), 1, lambda error: None)
    rendezvous.allow(180.0)
    assert rendezvous.timeout_s == 600.0
    rendezvous.complete()
