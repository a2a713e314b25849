"""The hosted API, read from: lists page by page, contents piece by piece. The key goes into one header only."""

import time
from collections.abc import Iterator, Mapping
from urllib.parse import quote, urlsplit

import httpx

from tunesmith.errors import InputError, RunFault
from tunesmith.serving.settings import is_loopback

TRIES, MAX_PAUSE_S = 6, 30.0
TIMEOUT_S = 60.0
PAGE, FILES_PAGE = 100, 1000
RemoteObject = Mapping[str, object]
"""An object of the hosted API as it came: nothing in it is certain but, in a list, its id."""


class Refused(Exception):
    """The hosted API says no to one thing; its words. The others can still be read."""


class Remote:
    def __init__(self, url: str, key: str):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url!r} is no address of an API", remedy="such as https://api.openai.com/v1")
        if parts.scheme == "http" and not (parts.hostname == "localhost" or is_loopback(parts.hostname)):
            raise InputError("the key would go over the network unencrypted", where=url, remedy="use https://")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError("the key holds characters that no API key has", remedy="check the environment variable")
        self.url, self.host = url.rstrip("/"), parts.netloc.rpartition("@")[2]
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._http.close()

    def files(self) -> Iterator[RemoteObject]:
        """The oldest first."""
        return self._pages("/files", order="asc", limit=FILES_PAGE)

    def jobs(self) -> Iterator[RemoteObject]:
        """The newest first."""
        return self._pages("/fine_tuning/jobs", limit=PAGE)

    def events(self, job_id: str) -> Iterator[RemoteObject]:
        return self._pages(f"/fine_tuning/jobs/{quote(job_id, safe='')}/events", limit=PAGE)

    def checkpoints(self, job_id: str) -> Iterator[RemoteObject]:
        return self._pages(f"/fine_tuning/jobs/{quote(job_id, safe='')}/checkpoints", limit=PAGE)

    def content(self, file_id: str) -> Iterator[bytes]:
        """A mebibyte at a time. Raises Refused, and RunFault where the connection breaks in the middle."""
        try:
            with self._http.stream("GET", f"{self.url}/files/{quote(file_id, safe='')}/content") as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise Refused(_words(answer))
                yield from answer.iter_bytes(1 << 20)
        except httpx.HTTPError as error:
            raise RunFault(f"the connection broke: {error}", where=self.url, remedy="run the command again") from None

    def _pages(self, path: str, **query: str | int) -> Iterator[RemoteObject]:
        while True:
            page = self._get(path, query)
            things = page.get("data")
            if not isinstance(things, list) or not all(isinstance(t, dict) and t.get("id") for t in things):
                raise RunFault(f"GET {path} gives no list", where=self.url)
            yield from things
            if not things or not page.get("has_more"):
                return
            if query.get("after") == things[-1]["id"]:
                raise RunFault(f"GET {path} gives the same page again", where=self.url)
            query["after"] = str(things[-1]["id"])

    def _get(self, path: str, query: Mapping[str, str | int]) -> RemoteObject:
        for tried in range(1, TRIES + 1):
            try:
                answer = self._http.get(self.url + path, params=query)
            except httpx.TransportError as error:
                if tried == TRIES:
                    raise RunFault(f"no answer: {error}", where=self.url, remedy="run the command again") from None
            else:
                if answer.status_code == 200:
                    return self._parsed(answer, path)
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    raise self._refusal(answer, path)
                if tried == TRIES:
                    raise RunFault(f"GET {path}: {_words(answer)}", where=self.url, remedy="run the command again")
            time.sleep(min(0.5 * 2**tried, MAX_PAUSE_S))
        raise AssertionError("unreachable")

    def _parsed(self, answer: httpx.Response, path: str) -> RemoteObject:
        try:
            page = answer.json()
        except ValueError:
            page = None
        if not isinstance(page, dict):
            raise RunFault(f"GET {path} gives no JSON object", where=self.url, remedy="check --base-url")
        return page

    def _refusal(self, answer: httpx.Response, path: str) -> InputError | Refused:
        if answer.status_code in (401, 403):
            remedy = "check the key, and that it may read files and fine-tuning jobs"
            return InputError(f"the API refuses the key: {_words(answer)}", where=self.url, remedy=remedy)
        if path.count("/") < 3:
            return InputError(f"GET {path}: {_words(answer)}", where=self.url, remedy="check --base-url")
        return Refused(_words(answer))


def _words(answer: httpx.Response) -> str:
    """Never a whole body, and of a refused key not the API's sentence: that repeats a part of it."""
    if answer.status_code == 401:
        return "401"
    try:
        told = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = answer.reason_phrase
    return f"{answer.status_code}: {str(told)[:300]}"
