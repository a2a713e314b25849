"""Webhooks for finished jobs: signed as the `openai` package verifies them (standardwebhooks.com), retried until
delivered.

A delivery is recorded in the job's directory at once: after a restart the server sends only what was not delivered,
under the same id, so that a receiver can recognize duplicates.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import httpx

from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.faults import fault_point
from tunesmith.serving.names import id_of

TIMEOUT_S = 15.0
"""For an attempt as a whole: connection, request and status of the response."""
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 3600.0
GIVE_UP_AFTER_S = 3 * 24 * 3600.0
"""Like the hosted API: retried with exponential backoff for three days."""


@dataclass(frozen=True)
class Endpoint:
    """secret: `whsec_` and base64, or any text."""

    url: str
    secret: str


class EndedJob(TypedDict):
    id: str


class WebhookEvent(TypedDict):
    id: str
    object: Literal["event"]
    created_at: int
    type: str
    data: EndedJob


class Delivery(TypedDict):
    """Delivery state of one endpoint, as stored in the job's directory. next, first: time of the next and the first
    attempt, seconds since the epoch. error: why the last attempt failed, None if it succeeded; absent before it."""

    tries: int
    next: float
    first: float
    done: bool
    error: NotRequired[str | None]


def signed_headers(secret: str, event_id: str, body: str, now: float) -> dict[str, str]:
    """The headers that `client.webhooks.unwrap` verifies."""
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode("utf-8")
    stamp = str(int(now))
    digest = hmac.new(key, f"{event_id}.{stamp}.{body}".encode(), hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "user-agent": "tunesmith",
        "webhook-id": event_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode('ascii')}",
    }


def event_of(job_id: str, status: str, finished_at: int) -> WebhookEvent:
    """The event of a finished job. Its id is derived from the job's: a job finishes once and has one event."""
    return {
        "id": id_of("evt_", f"{job_id} {status}"),
        "object": "event",
        "created_at": finished_at,
        "type": f"fine_tuning.job.{status}",
        "data": {"id": job_id},
    }


class WebhookDeliveries:
    """Pending deliveries of one job. path: a file in the job's directory."""

    def __init__(self, path: Path, endpoints: Sequence[Endpoint]):
        self.path, self.endpoints = path, endpoints

    def deliver(self, event: WebhookEvent, now: float | None = None) -> bool:
        """Send what is due, to all receivers at once. True once every receiver has the event or its three days are
        over. Takes at most TIMEOUT_S, whatever the receivers do.
        """
        now = time.time() if now is None else now
        state = self._state()
        for endpoint in self.endpoints:
            state.setdefault(endpoint.url, {"tries": 0, "next": 0.0, "first": now, "done": False})
        pending = {url for url, entry in state.items() if not entry["done"] and entry["next"] <= now}
        due = list({endpoint.url: endpoint for endpoint in self.endpoints if endpoint.url in pending}.values())
        if due:
            asyncio.run(self._deliver(due, event, now, state))
        return all(state[endpoint.url]["done"] for endpoint in self.endpoints)

    async def _deliver(
        self, due: Sequence[Endpoint], event: WebhookEvent, now: float, state: dict[str, Delivery]
    ) -> None:
        async def send(endpoint: Endpoint) -> tuple[Endpoint, str | None]:
            return endpoint, await _send(endpoint, event, now)

        for sent in asyncio.as_completed([send(endpoint) for endpoint in due]):
            endpoint, error = await sent
            entry = state[endpoint.url]
            entry["tries"] += 1
            entry["error"] = error
            entry["done"] = error is None or now - entry["first"] > GIVE_UP_AFTER_S
            entry["next"] = now + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(entry["tries"] - 1, 32))
            write_json(self.path, state)
            fault_point("job.delivered")

    def _state(self) -> dict[str, Delivery]:
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            return state if isinstance(state, dict) else {}
        except (OSError, ValueError):
            return {}


async def _send(endpoint: Endpoint, event: WebhookEvent, now: float) -> str | None:
    """Send an event; returns the error, or None.

    Only the status of the response is read: its body may be endless. Redirects are not followed: the signature is for
    this address.
    """
    body = json.dumps(event, separators=(",", ":"))
    headers = {**signed_headers(endpoint.secret, event["id"], body, now), "Connection": "close"}
    try:
        # httpx limits each read; a receiver that sends one byte at a time would never reach that limit.
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S) as client,
            client.stream("POST", endpoint.url, content=body.encode("utf-8"), headers=headers) as response,
        ):
            return None if response.is_success else f"HTTP {response.status_code}"
    except TimeoutError:
        return f"no response within {TIMEOUT_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
