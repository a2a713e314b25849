"""Webhooks: signatures verified by the openai package, retries until delivery, no duplicates."""

import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

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
