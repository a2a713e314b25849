"""Rate limits: a token bucket for each key, or for each address if the request has no key.

Each API process counts separately: with several processes, the limit applies to each of them.
"""

import math
import time
from dataclasses import dataclass

from tunesmith.serving.errors import ApiError

MAX_BUCKETS = 10_000
"""Beyond this number, full buckets are deleted: they are equal to new ones."""


@dataclass
class Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    def __init__(self, requests_per_minute: int):
        self._size = float(requests_per_minute)
        self._buckets: dict[str, Bucket] = {}

    def take(self, key: str, now: float | None = None) -> float:
        """Take a token; returns 0, or the seconds until the next token if the bucket is empty."""
        now = time.monotonic() if now is None else now
        if len(self._buckets) >= MAX_BUCKETS:
            self._delete_full(now)
        bucket = self._buckets.setdefault(key, Bucket(self._size, now))
        bucket.tokens = min(self._size, bucket.tokens + (now - bucket.filled_at) * self._size / 60.0)
        bucket.filled_at = now
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) * 60.0 / self._size
        bucket.tokens -= 1.0
        return 0.0

    def error(self, wait_s: float) -> ApiError:
        """The 429 response with `Retry-After`."""
        return ApiError(
            f"Rate limit reached: {self._size:g} requests per minute. Please try again in {wait_s:.1f}s.",
            status=429,
            type="requests",
            code="rate_limit_exceeded",
            retry_after_s=max(1, math.ceil(wait_s)),
        )

    def _delete_full(self, now: float) -> None:
        full = [key for key, bucket in self._buckets.items() if now - bucket.filled_at >= 60.0]
        for key in full:
            del self._buckets[key]
