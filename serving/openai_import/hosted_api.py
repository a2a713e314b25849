"""Client of the hosted API for reading lists and file contents. The key is sent only in the Authorization header."""

import time
from collections.abc import Iterator, Mapping
from urllib.parse import quote, urlsplit

import httpx

from tunesmith.errors import InputError, RunFault
from tunesmith.serving.settings import is_loopback

ATTEMPTS, MAX_DELAY_S = 6, 30.0
TIMEOUT_S = 60.0
PAGE, FILES_PAGE = 100, 1000
RemoteObject = Mapping[str, object]
"""An unvalidated object of the hosted API. Only the id of a list item has been checked."""


class RequestFailed(Exception):
    """The hosted API rejected a request for one object, with its message. Other objects may still be readable."""


class HostedApi:
    def __init__(self, url: str, key: str):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url!r} is not an API URL", remedy="use a URL such as https://api.openai.com/v1")
        if parts.scheme == "http" and not (parts.hostname == "localhost" or is_loopback(parts.hostname)):
            raise InputError("the API key would be sent unencrypted", where=url, remedy="use https://")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError("the API key contains invalid characters", remedy="check the environment variable")
        self.url, self.host = url.rstrip("/"), parts.netloc.rpartition("@")[2]
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._http.close()

    def files(self) -> Iterator[RemoteObject]:
        """All files, oldest first."""
        return self._pages("/files", order="asc", limit=FILES_PAGE)

    def jobs(self) -> Iterator[RemoteObject]:
        """All jobs, newest first."""
        return self._pages("/fine_tuning/jobs", limit=PAGE)

    def events(self, job_id: str) -> Iterator[RemoteObject]:
        return self._pages(f"/fine_tuning/jobs/{quote(job_id, safe='')}/events", limit=PAGE)

    def checkpoints(self, job_id: str) -> Iterator[RemoteObject]:
        return self._pages(f"/fine_tuning/jobs/{quote(job_id, safe='')}/checkpoints", limit=PAGE)

    def content(self, file_id: str) -> Iterator[bytes]:
        """Content in chunks of 1 MiB. Raises RequestFailed, and RunFault if the connection is lost."""
        try:
            with self._http.stream("GET", f"{self.url}/files/{quote(file_id, safe='')}/content") as response:
                if response.status_code != 200:
                    response.read()
                    raise RequestFailed(_message(response))
                yield from response.iter_bytes(1 << 20)
        except httpx.HTTPError as error:
            raise RunFault(f"connection lost: {error}", where=self.url, remedy="run the command again") from None

    def _pages(self, path: str, **query: str | int) -> Iterator[RemoteObject]:
        while True:
            page = self._get(path, query)
            items = page.get("data")
            if not isinstance(items, list) or not all(isinstance(item, dict) and item.get("id") for item in items):
                raise RunFault(f"GET {path} did not return a list", where=self.url)
            yield from items
            if not items or not page.get("has_more"):
                return
            if query.get("after") == items[-1]["id"]:
                raise RunFault(f"GET {path} returned the same page twice", where=self.url)
            query["after"] = str(items[-1]["id"])

    def _get(self, path: str, query: Mapping[str, str | int]) -> RemoteObject:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._http.get(self.url + path, params=query)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS:
                    raise RunFault(f"no response: {error}", where=self.url, remedy="run the command again") from None
            else:
                if response.status_code == 200:
                    return self._parsed(response, path)
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    raise self._error(response, path)
                if attempt == ATTEMPTS:
                    raise RunFault(f"GET {path}: {_message(response)}", where=self.url, remedy="run the command again")
            time.sleep(min(0.5 * 2**attempt, MAX_DELAY_S))
        raise AssertionError("unreachable")

    def _parsed(self, response: httpx.Response, path: str) -> RemoteObject:
        try:
            page = response.json()
        except ValueError:
            page = None
        if not isinstance(page, dict):
            raise RunFault(f"GET {path} did not return a JSON object", where=self.url, remedy="check --base-url")
        return page

    def _error(self, response: httpx.Response, path: str) -> InputError | RequestFailed:
        if response.status_code in (401, 403):
            remedy = "check the key, and that it has access to files and fine-tuning jobs"
            return InputError(f"the API rejected the key: {_message(response)}", where=self.url, remedy=remedy)
        if path.count("/") < 3:
            return InputError(f"GET {path}: {_message(response)}", where=self.url, remedy="check --base-url")
        return RequestFailed(_message(response))


def _message(response: httpx.Response) -> str:
    """Short error message. A 401 message is left out, since it repeats a part of the key."""
    if response.status_code == 401:
        return "401"
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    return f"{response.status_code}: {str(message)[:300]}"
