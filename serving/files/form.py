"""Streaming parser for multipart forms with one file: the file goes to a sink in chunks, without buffering all of it in
memory or in a temporary file."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tunesmith.serving.errors import ApiError

MAX_FIELD_BYTES = 1 << 14
MAX_FIELDS = 32
FLUSH_BYTES = 1 << 20


@dataclass
class Form:
    """A parsed form. fields: name to text. filename: as sent by the client; None if the form has no file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def read_form(
    chunks: AsyncIterator[bytes], content_type: str | None, file_field: str, sink: Callable[[bytes], None]
) -> Form:
    """Parse a whole form. `sink` receives the file's content, in a thread. Raises ApiError if the form is invalid."""
    kind, options = parse_options_header(content_type or "")
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError("The request body must be a form with Content-Type multipart/form-data and a boundary")
    reader = _Reader(file_field)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        async for chunk in chunks:
            for start in range(0, len(chunk), FLUSH_BYTES):
                parser.write(chunk[start : start + FLUSH_BYTES])
                if len(reader.buffer) >= FLUSH_BYTES:
                    await to_thread.run_sync(sink, reader.take())
        parser.finalize()
    except FormParserError:
        raise ApiError("The request body is not a well-formed multipart form") from None
    if not reader.ended:
        raise ApiError("The request body ends before the end of the form")
    if reader.buffer:
        await to_thread.run_sync(sink, reader.take())
    return reader.form


class _Reader:
    """Callbacks of the multipart parser."""

    def __init__(self, file_field: str):
        self.form, self.buffer, self.ended = Form(), bytearray(), False
        self._file_field, self._header, self._value = file_field, b"", b""
        self._name, self._in_file, self._text = "", False, bytearray()
        self._disposition = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        taken, self.buffer = bytes(self.buffer), bytearray()
        return taken

    def _part_begin(self) -> None:
        self._disposition, self._text, self._in_file, self._name = b"", bytearray(), False, ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._in_file = self._name == self._file_field
        if not self._name:
            raise ApiError("A form field has no name")
        if self._in_file:
            if self.form.filename is not None:
                raise ApiError(f"The form contains '{self._file_field}' twice", param=self._file_field)
            if filename is None:
                raise ApiError(f"'{self._file_field}' must be a file", param=self._file_field)
            self.form.filename = filename.decode("utf-8", "replace")
        elif len(self.form.fields) >= MAX_FIELDS:
            raise ApiError(f"The form has more than {MAX_FIELDS} fields")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.buffer += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise ApiError(f"'{self._name[:80]}' is longer than {MAX_FIELD_BYTES} bytes", param=self._name[:80])

    def _part_end(self) -> None:
        if not self._in_file:
            try:
                self.form.fields[self._name] = self._text.decode("utf-8")
            except UnicodeDecodeError:
                raise ApiError(f"'{self._name[:80]}' is not UTF-8 text", param=self._name[:80]) from None

    def _end(self) -> None:
        self.ended = True
