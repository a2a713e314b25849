"""llama.cpp's C API through ctypes, from the shared library that a Python package brings.

The packages' wheels (xllamacpp, llama-cpp-python) export the functions of llama.h. Structures that are passed by value
grow between versions: they are declared larger than any version's and filled by llama.cpp's own defaults, and only
their first fields, which have stood since 2023, are set. No torch: the gate runs this in a process of its own, because
llama.cpp ends its process on some invalid files.
"""

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import RunFault

_PATTERNS = {"xllamacpp": "xllamacpp*.so", "llama_cpp": "lib/libllama.*"}
"""Where the packages have the library, below their directory."""
_PROJECTS = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}
_UNKNOWN_SIZE = 2048
"""Bytes for a structure of parameters; llama.cpp's had 72 to 168 bytes in 2026."""


class _Parameters(ctypes.Structure):
    """First fields of llama_context_params; of llama_model_params none is used."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("rest", ctypes.c_ubyte * (_UNKNOWN_SIZE - 16)),
    )


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_POINTER, _INT, _BOOL, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
_ERROR = 4
"""Level of errors in llama.cpp's log."""
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (_LOG, _POINTER)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_Parameters, ()),
    "llama_model_load_from_file": (_POINTER, (_TEXT, _Parameters)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_chat_template": (_TEXT, (_POINTER, _TEXT)),
    "llama_context_default_params": (_Parameters, ()),
    "llama_init_from_model": (_POINTER, (_POINTER, _Parameters)),
    "llama_free": (None, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, _BOOL)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_is_eog": (_BOOL, (_POINTER, _INT)),
    "llama_tokenize": (_INT, (_POINTER, _TEXT, _INT, ctypes.POINTER(_INT), _INT, _BOOL, _BOOL)),
}
_QUANTIZE = (
    ctypes.c_size_t,
    (_INT, _POINTER, _POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _POINTER),
)


@dataclass(frozen=True)
class Library:
    """A shared library with llama.cpp in it. name: package and version, for output."""

    path: Path
    name: str


def find_library() -> Library | None:
    """Return the llama.cpp of an installed package; None if there is none with the functions of llama.h."""
    for package, pattern in _PATTERNS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted(Path(spec.origin).parent.glob(pattern)):
            if _has_functions(path):
                return Library(path, f"{_PROJECTS[package]} {_version(_PROJECTS[package])}")
    return None


def _has_functions(path: Path) -> bool:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # built for another system, or a library that it needs is missing
        return False
    return all(hasattr(library, name) for name in _FUNCTIONS)


def _version(project: str) -> str:
    try:
        return version(project)
    except PackageNotFoundError:
        return "of unknown version"


def ggml_quantizer(library: Library, threads: int) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Return llama.cpp's function that quantizes rows of fp32 to bytes of a ggml type; None if the library hides it."""
    import gguf

    loaded = ctypes.CDLL(str(library.path))
    if not hasattr(loaded, "ggml_quantize_chunk"):
        return None
    chunk: Any = loaded.ggml_quantize_chunk
    chunk.restype, chunk.argtypes = _QUANTIZE

    def quantize(rows: np.ndarray, kind: int) -> np.ndarray:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        columns = rows.shape[-1]
        flat = rows.reshape(-1, columns)
        result = np.empty((len(flat), columns // values * size), dtype=np.uint8)
        step = max(1, -(-len(flat) // threads))

        def one(start: int) -> int:
            count = min(step, len(flat) - start)
            return chunk(kind, flat.ctypes.data, result.ctypes.data, start * columns, count, columns, None)

        with ThreadPoolExecutor(threads) as pool:  # ctypes releases the interpreter's lock
            written = sum(pool.map(one, range(0, len(flat), step)))
        if written != result.nbytes:
            raise RunFault(f"llama.cpp's quantizer wrote {written} bytes instead of {result.nbytes}")
        return result.reshape(*rows.shape[:-1], -1)

    return quantize


class Model:
    """A GGUF file loaded by llama.cpp."""

    def __init__(self, library: Library, file: Path):
        self._api: Any = ctypes.CDLL(str(library.path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._api, name)
            function.restype, function.argtypes = result, arguments
        errors: list[str] = []

        def keep(level: int, text: bytes, _: Any) -> None:
            if level == _ERROR:
                errors.append(text.decode(errors="replace").strip())

        self._log = _LOG(keep)  # kept: llama.cpp calls it as long as it runs
        self._api.llama_log_set(self._log, None)
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(file).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise RunFault(
                f"llama.cpp cannot load the file: {errors[0] if errors else 'no reason given'}", where=str(file)
            )
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.num_tokens: int = self._api.llama_vocab_n_tokens(self._vocab)

    @property
    def chat_template(self) -> str | None:
        """The template in the file."""
        template = self._api.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode()

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return self._api.llama_vocab_is_eog(self._vocab, token)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return the tokens of a text; special tokens written in it become those tokens."""
        data = text.encode("utf-8")
        room = len(data) + 8
        tokens = (_INT * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, True)
        if count < 0:
            raise RunFault(f"llama.cpp needs {-count} tokens for a text of {len(data)} bytes")
        return list(tokens[:count])

    def context(self, tokens: int, sequences: int, threads: int) -> "Context":
        """Return a context for so many tokens per sequence."""
        return Context(self, tokens, sequences, threads)


class Context:
    """The key-value cache of a model, for several sequences at a time."""

    def __init__(self, model: Model, tokens: int, sequences: int, threads: int):
        api: Any = model._api
        self._api, self._vocabulary, self._sequences = api, model.num_tokens, sequences
        parameters = api.llama_context_default_params()
        per_sequence = -(-tokens // 256) * 256  # llama.cpp's unit
        parameters.n_ctx, parameters.n_seq_max = per_sequence * sequences, sequences
        self._size = min(512, per_sequence * sequences)
        parameters.n_batch = parameters.n_ubatch = self._size
        self._context = api.llama_init_from_model(model._model, parameters)
        if not self._context:
            raise RunFault("llama.cpp cannot create a context for the file")
        api.llama_set_n_threads(self._context, threads, threads)
        self._batch = api.llama_batch_init(self._size, 0, 1)

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def row_logits(self, row: Sequence[int]) -> np.ndarray:
        """Return the logits at every position of a row, fp32 [T, V]."""
        self.clear()
        parts = []
        for start in range(0, len(row), self._size):
            part = row[start : start + self._size]
            self._decode([(token, start + place, 0, True) for place, token in enumerate(part)])
            parts.extend(self._logits(place).copy() for place in range(len(part)))
        return np.stack(parts)

    def greedy(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Return the greedy continuations, without stopping, of so many tokens; prompts are computed side by side."""
        self.clear()
        nexts = []
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), self._size):
                part = prompt[start : start + self._size]
                last = len(prompt) - 1 - start
                self._decode([(token, start + place, sequence, place == last) for place, token in enumerate(part)])
            nexts.append(int(self._logits((len(prompt) - 1) % self._size).argmax()))
        answers = [[token] for token in nexts]
        for step in range(new_tokens - 1):
            self._decode(
                [(answer[-1], len(prompts[number]) + step, number, True) for number, answer in enumerate(answers)]
            )
            for number, answer in enumerate(answers):
                answer.append(int(self._logits(number).argmax()))
        return answers

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, whether its logits are needed) in one batch."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, needs_logits) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = int(needs_logits)
        if code := self._api.llama_decode(self._context, batch):
            raise RunFault(f"llama.cpp failed to compute {len(entries)} tokens: code {code}")

    def _logits(self, place: int) -> np.ndarray:
        pointer = self._api.llama_get_logits_ith(self._context, place)
        if not pointer:
            raise RunFault("llama.cpp has no logits for a position")
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))
