"""Webhooks as the openai package verifies them; sent again until they arrive, and never after."""

import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tunesmith.serving.webhooks import FIRST_WAIT_S, GIVE_UP_AFTER_S, Endpoint, Mailbox, event_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def endpoint(server, secret=SECRET):
    return Endpoint(f"http://127.0.0.1:{server.server_port}/hook", secret)


@pytest.mark.parametrize("secret", [SECRET, "a plain word"])
@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_the_package_takes_what_is_sent(receiver, tmp_path, status, secret):
    assert Mailbox(tmp_path / "webhooks.json", [endpoint(receiver, secret)]).deliver(event_of("ftjob-1", status, 7))
    (body, headers), client = receiver.got[0], OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id, event.created_at) == (f"fine_tuning.job.{status}", "ftjob-1", 7)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", headers, secret=secret)


def test_sent_again_until_it_arrives_and_never_after_also_by_a_new_process(receiver, tmp_path):
    receiver.codes = [500, 302]
    event, path, now = event_of("ftjob-1", "succeeded", 7), tmp_path / "webhooks.json", time.time()

    def deliver(after_s):
        return Mailbox(path, [endpoint(receiver)]).deliver(event, now + after_s)

    assert [deliver(0), deliver(FIRST_WAIT_S / 2)] == [False, False]
    assert len(receiver.got) == 1  # the pause is kept
    assert [deliver(FIRST_WAIT_S), deliver(4 * FIRST_WAIT_S), deliver(5 * FIRST_WAIT_S)] == [False, True, True]
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for _, headers in receiver.got}) == 1


def test_one_deaf_receiver_holds_up_no_other_and_is_given_up(receiver, tmp_path):
    deaf = Endpoint("http://127.0.0.1:9/hook", SECRET)
    event, now = event_of("ftjob-1", "failed", 7), time.time()
    box = Mailbox(tmp_path / "webhooks.json", [deaf, endpoint(receiver)])
    assert not box.deliver(event, now)
    assert len(receiver.got) == 1
    assert box.deliver(event, now + GIVE_UP_AFTER_S + 1)
    assert len(receiver.got) == 1
