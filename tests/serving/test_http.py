"""Requests that are not valid HTTP: an error in the API's format, and a closed connection."""

import json
import socket

import pytest

from tests.waiting import LIMIT_S

ERROR_KEYS = {"message", "type", "param", "code"}
POST = b"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SMUGGLED = b"0\r\n\r\nGET /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n"
INVALID = {
    "both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED, 400),
    "both lengths, reversed": (POST + b"transfer-encoding: CHUNKED\r\ncontent-length: 5\r\n\r\n" + SMUGGLED, 400),
    "different lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456", 400),
    "different lengths in one header": (POST + b"Content-Length: 5, 6\r\n\r\n123456", 400),
    "negative length": (POST + b"Content-Length: -5\r\n\r\n", 400),
    "signed length": (POST + b"Content-Length: +5\r\n\r\n12345", 400),
    "length that is no number": (POST + b"Content-Length: five\r\n\r\n", 400),
    "unknown transfer encoding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "obscured transfer encoding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
    "two transfer encodings": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "chunked in HTTP/1.0": (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + SMUGGLED, 400),
    "invalid chunk length": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "no host": (b"GET /v1/files HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v1/files HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "space before the colon": (b"GET /v1/files HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "header without a colon": (b"GET /v1/files HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
    "null byte in a header": (b"GET /v1/files HTTP/1.1\r\nHost: local\x00host\r\n\r\n", 400),
    "no version": (b"GET /v1/files\r\nHost: localhost\r\n\r\n", 400),
    "unknown version": (b"GET /v1/files HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
    "bytes beyond ASCII in the target": (b"GET /v1/f\xc3\xbc HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n", 400),
    "a head that is too long": (b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 17), 431),
}


def exchange(port: int, request: bytes) -> bytes:
    """Everything that the server sends until it closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as connection:
        connection.sendall(request)
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_http_gets_an_api_error_and_a_closed_connection(api, kind):
    request, status = INVALID[kind]
    head, _, body = exchange(api.port, request).partition(b"\r\n\r\n")
    first, *headers = head.lower().split(b"\r\n")
    assert first.split()[1] == str(status).encode(), (head, body)
    assert b"content-type: application/json" in headers
    assert b"connection: close" in headers
    assert any(header.startswith(b"x-request-id: req_") for header in headers)
    error = json.loads(body)["error"]  # one response: the smuggled request is not answered
    assert set(error) == ERROR_KEYS
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"CONNECT localhost:80 HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"GET http://localhost/v1/files HTTP/1.1", 404),
        (b"BREW /v1/files HTTP/1.1", 405),
        (b"GET //v1/files HTTP/1.1", 404),
        (b"GET /v1/files/%ff%fe%00 HTTP/1.1", 400),
        (b"GET /v1/files/..%2f..%2fetc HTTP/1.1", 404),
        (b"GET /v1/files?limit=%ff HTTP/1.1", 400),
    ],
)
def test_unusual_requests_get_an_api_error(api, request_line, status):
    received = exchange(api.port, request_line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), received
    assert set(json.loads(body)["error"]) == ERROR_KEYS


def test_valid_requests_are_answered(api):
    """One length, however it is given; connections stay open."""
    body = b'{"bytes": 1}'
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    sized = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = exchange(api.port, chunked + sized + last)
    assert received.count(b"HTTP/1.1 400") == received.count(b"Missing required parameter") == 2
    assert received.endswith(b'{"status":"ok"}')
