"""Webhooks: signatures verified by the openai package, retries until delivery, no duplicates."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.waiting import wait_for
from tunesmith.serving import webhooks
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.supervisor import DELIVERY_THREADS, THREADS, Supervisor
from tunesmith.serving.settings import Settings, Webhook
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job
from tunesmith.serving.webhooks import FIRST_WAIT_S, GIVE_UP_AFTER_S, Endpoint, WebhookDeliveries, event_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def endpoint(server, secret=SECRET):
    return Endpoint(f"http://127.0.0.1:{server.server_port}/hook", secret)


@pytest.mark.parametrize("secret", [SECRET, "a plain word"])
@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_the_openai_package_verifies_webhooks(receiver, tmp_path, status, secret):
    assert WebhookDeliveries(tmp_path / "webhooks.json", [endpoint(receiver, secret)]).deliver(
        event_of("ftjob-1", status, 7)
    )
    (body, headers), client = receiver.received[0], OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id, event.created_at) == (f"fine_tuning.job.{status}", "ftjob-1", 7)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers, secret=secret)


def test_delivery_is_retried_until_it_succeeds(receiver, tmp_path):
    receiver.codes = [500, 302]
    event, path, now = event_of("ftjob-1", "succeeded", 7), tmp_path / "webhooks.json", time.time()

    def deliver(after_s):
        return WebhookDeliveries(path, [endpoint(receiver)]).deliver(event, now + after_s)

    assert [deliver(0), deliver(FIRST_WAIT_S / 2)] == [False, False]
    assert len(receiver.received) == 1  # not before the wait is over
    assert [deliver(FIRST_WAIT_S), deliver(4 * FIRST_WAIT_S), deliver(5 * FIRST_WAIT_S)] == [False, True, True]
    assert len(receiver.received) == 3
    assert len({headers["webhook-id"] for _, headers in receiver.received}) == 1


def test_an_unreachable_receiver_does_not_delay_others(receiver, tmp_path):
    unreachable = Endpoint("http://127.0.0.1:9/hook", SECRET)
    event, now = event_of("ftjob-1", "failed", 7), time.time()
    deliveries = WebhookDeliveries(tmp_path / "webhooks.json", [unreachable, endpoint(receiver)])
    assert not deliveries.deliver(event, now)
    assert len(receiver.received) == 1
    assert deliveries.deliver(event, now + GIVE_UP_AFTER_S + 1)
    assert len(receiver.received) == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
ENDLESS = {
    "body": (HEAD + b"Content-Length: 1000000000000\r\n\r\n", b"x" * 65536, 0.0, None),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 32768 + b"\r\n", 0.0, None),
    "slow body": (HEAD + b"Content-Length: 1000000\r\n\r\n", b"x", 0.1, None),
    "slow headers": (b"HTTP/1.1 200 OK\r\n", b"a", 0.1, "no response within 1 s"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-header: " + b"x" * 4096 + b"\r\n", 0.0, "RemoteProtocolError"),
    "interim responses": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 0.02, "no response within 1 s"),
    "silence": (b"", b"", 0.1, "no response within 1 s"),
}
"""What a receiver sends first, what it then repeats, its pause in seconds, and the error of the delivery."""


class EndlessReceiver:
    """A TCP server whose responses never end. num_bytes: sent so far. num_closed: connections closed by the client."""

    def __init__(self, first: bytes, repeated: bytes, pause_s: float):
        self.first, self.repeated, self.pause_s = first, repeated, pause_s
        self.num_bytes = self.num_closed = 0
        self.ended = threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.server_port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(self.first)
                while not self.ended.wait(self.pause_s):
                    connection.sendall(self.repeated)
                    self.num_bytes += len(self.repeated)
                    if not self.repeated and connection.recv(65536) == b"":
                        break
            except OSError:
                pass
            self.num_closed += 1

    def close(self) -> None:
        self.ended.set()
        self.listening.close()


@pytest.fixture
def endless() -> Iterator[Callable[[str], EndlessReceiver]]:
    receivers: list[EndlessReceiver] = []

    def start(kind: str) -> EndlessReceiver:
        receivers.append(EndlessReceiver(*ENDLESS[kind][:3]))
        return receivers[-1]

    yield start
    for each in receivers:
        each.close()


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_response_takes_neither_memory_nor_time(endless, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)
    receiver, error = endless(kind), ENDLESS[kind][3]
    deliveries = WebhookDeliveries(tmp_path / "webhooks.json", [endpoint(receiver)])
    started_at = time.monotonic()
    assert deliveries.deliver(event_of("ftjob-1", "succeeded", 7)) is (error is None)
    assert time.monotonic() - started_at < 10
    assert json.loads(deliveries.path.read_text())[endpoint(receiver).url]["error"] == error
    wait_for(lambda: receiver.num_closed == 1)
    assert receiver.num_bytes < 32 << 20  # what fits into the buffers of the kernel


def test_receivers_are_called_at_once(endless, receiver, tmp_path, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 1.0)
    slow = [endless("silence") for _ in range(8)]
    deliveries = WebhookDeliveries(tmp_path / "webhooks.json", [*map(endpoint, slow), endpoint(receiver)])
    started_at = time.monotonic()
    assert not deliveries.deliver(event_of("ftjob-1", "failed", 7))
    assert time.monotonic() - started_at < 6
    assert len(receiver.received) == 1


def test_redirects_are_not_followed(receiver, endless, tmp_path):
    first = b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: "
    redirecting = EndlessReceiver(first + f"http://127.0.0.1:{receiver.server_port}/\r\n\r\n".encode(), b"", 0.1)
    deliveries = WebhookDeliveries(tmp_path / "webhooks.json", [endpoint(redirecting)])
    assert not deliveries.deliver(event_of("ftjob-1", "failed", 7))
    redirecting.close()
    assert receiver.received == []


def test_slow_receivers_do_not_delay_jobs(endless, tmp_path, monkeypatch):
    """More finished jobs wait for their receiver than there are threads; a new job is processed meanwhile."""
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 5.0)
    receiver = endless("silence")
    hook = Webhook(url=endpoint(receiver).url, secret="a secret of sixteen characters")
    settings = Settings(home=tmp_path, webhooks=(hook,))
    store = Store(settings.store_url)
    facts = {"organization": "o", "model": "m", "base": "m", "seed": 1, "method": {"type": "supervised"}}
    facts |= {"hyperparameters": {}, "training_file": "file-1", "result_files": []}
    for number in range(THREADS + DELIVERY_THREADS):
        store.jobs.create(Job(id=f"ftjob-{number}", status="failed", created_at=1, finished_at=2, **facts))
    new, _ = store.jobs.create(Job(id="ftjob-new", status="validating_files", created_at=3, **facts))
    supervisor = Supervisor(store, Blobs(settings.blobs_url), settings)

    def has_failed() -> bool:
        supervisor.tick()
        job = store.jobs.get(new.id)
        assert job is not None
        return job.status == "failed"

    wait_for(has_failed)
    assert receiver.num_closed == 0
    supervisor.close()
    store.close()
