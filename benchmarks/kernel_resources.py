"""Registers, shared memory, spills and vector loads of every Triton kernel, compiled for each card without a GPU.

    python benchmarks/kernel_resources.py [--cards 80 90] [--needs]

Prints the table of docs/kernels.md, or with --needs that of kernels/resources.py. Compiled as at launch with the sizes
of LLaMA-3-8B in bf16: Triton specializes for aligned pointers and for sizes that are multiples of 16.
"""

import argparse
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from tunesmith.kernels.language import triton
from tunesmith.kernels.resources import SHARED_BYTES, Need

TYPES = {"p32": "*fp32", "p16": "*bf16", "pi": "*i64", "p8": "*u8", "pb": "*i1", "n": "i32", "f": "fp32"}


TILES = ({"ROWS": 1, "BLOCK": 4096, "num_warps": 8}, {"ROWS": 32, "BLOCK": 128, "num_warps": 8})
"""Rows of a block's norm, and of the norms of queries and keys (Qwen 3)."""
OTHER_TILES = (
    {"ROWS": 4, "BLOCK": 1024, "num_warps": 8},
    {"ROWS": 2, "BLOCK": 2048, "num_warps": 8},
    {"ROWS": 1, "BLOCK": 8192, "num_warps": 16},
    {"ROWS": 1, "BLOCK": 16384, "num_warps": 16},
)
"""The other sizes up to `resources.LONGEST_ROW`: only the forms that need most (residual, trained weight)."""
NF4 = {"VALUES_BLOCK": 64, "SCALE_BLOCK": 256, "DOUBLE": True}
ROPE_POINTERS = dict.fromkeys(["query", "key", "cos", "sin", "query_out", "key_out"], "p16")
ROPE_STRIDES = [f"{t}_{d}" for t in ("query", "key", "query_out", "key_out") for d in ("batch", "head", "token")]
ADAMW = dict.fromkeys(["rate", "beta1", "beta2", "eps", "decay", "correction1", "correction2"], "f")
CASES = {
    "rms_norm._forward_kernel": [
        {
            **dict.fromkeys(["hidden", "residual", "weight", "normed", "summed"], "p16"),
            "scale": "p32",
            **dict.fromkeys(["stride_hidden", "stride_residual", "num_rows", "num_values"], "n"),
            "eps": "f",
            "offset": "f",
            "HAS_RESIDUAL": residual,
            **tile,
        }
        for tile, residual in (*product(TILES, (False, True)), *product(OTHER_TILES, (True,)))
    ],
    "rms_norm._backward_kernel": [
        {
            **dict.fromkeys(["dnormed", "dsummed", "hidden", "weight", "dhidden"], "p16"),
            **dict.fromkeys(["scale", "dweight"], "p32"),
            **dict.fromkeys(["stride_dnormed", "stride_dsummed", "stride_hidden", "num_rows", "num_values"], "n"),
            "tiles_each": "n",
            "offset": "f",
            "HAS_RESIDUAL": trained,
            "WANTS_WEIGHT": trained,
            **tile,
        }
        for tile, trained in (*product(TILES, (False, True)), *product(OTHER_TILES, (True,)))
    ],
    "layer_norm._forward_kernel": [
        {
            **dict.fromkeys(["hidden", "weight", "bias", "normed"], "p16"),
            "mean": "p32",
            "scale": "p32",
            "stride": "n",
            "num_rows": "n",
            "num_values": "n",
            "eps": "f",
            "HAS_BIAS": True,
            **tile,
        }
        for tile in (OTHER_TILES[0], OTHER_TILES[2])
    ],
    "layer_norm._backward_kernel": [
        {
            **dict.fromkeys(["dnormed", "hidden", "weight", "dhidden"], "p16"),
            **dict.fromkeys(["mean", "scale", "dweight", "dbias"], "p32"),
            **dict.fromkeys(["stride_dnormed", "stride_hidden", "num_rows", "num_values", "tiles_each"], "n"),
            "WANTS_WEIGHT": True,
            **tile,
        }
        for tile in (OTHER_TILES[0], OTHER_TILES[2])
    ],
    "rope._rope_kernel": [
        {
            **ROPE_POINTERS,
            **dict.fromkeys([*ROPE_STRIDES, "cos_batch", "cos_token", "sin_batch", "sin_token"], "n"),
            **dict.fromkeys(["num_tokens", "num_query_heads", "num_key_heads", "half"], "n"),
            "BACKWARD": backward,
            "QUERY_HEADS": 32,
            "KEY_HEADS": 8,
            "HALF": 64,
        }
        for backward in (False, True)
    ],
    "swiglu._forward_kernel": [
        {
            **dict.fromkeys(["gate", "up", "output"], "p16"),
            **dict.fromkeys(["stride_gate", "stride_up", "num_values"], "n"),
            "ACTIVATION": activation,
            "BLOCK": 1024,
        }
        for activation in (0, 1, 2)
    ],
    "swiglu._backward_kernel": [
        {
            **dict.fromkeys(["doutput", "gate", "up", "dgate", "dup"], "p16"),
            **dict.fromkeys(["stride_doutput", "stride_gate", "stride_up", "stride_gradient", "num_values"], "n"),
            "ACTIVATION": activation,
            "BLOCK": 1024,
        }
        for activation in (0, 1, 2)
    ],
    "cross_entropy._forward_kernel": [
        {
            "logits": "p16",
            "labels": "pi",
            "losses": "p32",
            "correct": "pb",
            "log_totals": "p32",
            "stride": "n",
            "num_logits": "n",
            "smoothing": "f",
            "cap": "f",
            "z_loss": "f",
            "HAS_CAP": cap,
            "HAS_SMOOTHING": smoothing,
            "IN_PLACE_GRADIENT": in_place,
            "BLOCK": 2048,
            "num_warps": 8,
        }
        for cap, smoothing, in_place in ((False, False, True), (True, True, False))
    ],
    "cross_entropy._backward_kernel": [
        {
            "dlosses": "p32",
            "logits": "p16",
            "labels": "pi",
            "log_totals": "p32",
            "dlogits": "p16",
            "stride_dlosses": "n",
            "stride": "n",
            "num_logits": "n",
            "smoothing": "f",
            "cap": "f",
            "z_loss": "f",
            "HAS_CAP": True,
            "BLOCK": 2048,
            "num_warps": 8,
        }
    ],
    "nf4._dequantise_kernel": [
        {
            "packed": "p8",
            "scales": "p8",
            "table": "p32",
            "scale_table": "p32",
            "scale_scales": "p32",
            "scale_offset": "p32",
            "numbers": "p16",
            "num_bytes": "n",
            "num_values": "n",
            **NF4,
            "ROWS": 32,
        }
    ],
    "adamw._adamw_kernel": [
        {
            **dict.fromkeys(["parameter", "gradient", "first", "second"], "p32"),
            "num_values": "n",
            **ADAMW,
            "BLOCK": 1024,
        }
    ],
    "adamw._adamw_8bit_kernel": [
        {
            "parameter": "p32",
            "gradient": "p16",
            "first": "p8",
            "second": "p8",
            **dict.fromkeys(["first_scales", "second_scales", "first_table", "second_table"], "p32"),
            "first_middles": "p32",
            "second_middles": "p32",
            "num_values": "n",
            **ADAMW,
            "BLOCK": 256,
        }
    ],
}

UNALIGNED = {"num_rows", "num_tokens", "tiles_each", "num_key_heads"}
"""Sizes that are not multiples of 16 in general."""


class Resources(NamedTuple):
    """Figures of one compiled case. shared: bytes per program; registers, spilled (bytes), loads (instructions that
    read global memory): per thread; vectorized: whether it loads 16 bytes at a time."""

    name: str
    case: int
    card: int
    warps: int
    shared: int
    registers: int
    spilled: int
    vectorized: bool
    loads: int


def is_common(case: dict[str, Any]) -> bool:
    """Whether a case is one of the sizes of LLaMA 3 8B, or of the smallest LayerNorm models."""
    tile = {key: case.get(key) for key in ("ROWS", "BLOCK", "num_warps")}
    return tile not in OTHER_TILES or ("HAS_RESIDUAL" not in case and tile == OTHER_TILES[0])


def compiled(cards: Sequence[int], names: Sequence[str] = tuple(CASES)) -> Iterator[Resources]:
    """Compile the cases of the named kernels for the cards (compute capability without its dot)."""
    for name in names:
        for number, case in enumerate(CASES[name]):
            for card in cards:
                yield _compile(name, number, dict(case), card)


def _compile(name: str, number: int, case: dict[str, Any], card: int) -> Resources:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    module, function = name.split(".")
    kernel = getattr(importlib.import_module(f"tunesmith.kernels.{module}"), function)
    warps, stages = case.pop("num_warps", 4), case.pop("num_stages", 3)
    types = {key: TYPES[value] if isinstance(value, str) else "constexpr" for key, value in case.items()}
    constants = {key: value for key, value in case.items() if not isinstance(value, str)}
    aligned = [key for key, kind in types.items() if kind[0] == "*" or (kind == "i32" and key not in UNALIGNED)]
    attributes = {(kernel.arg_names.index(key),): [["tt.divisibility", 16]] for key in aligned}
    signature = {key: types[key] for key in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    result = triton.compile(
        source, target=GPUTarget("cuda", card, 32), options={"num_warps": warps, "num_stages": stages}
    )
    ptx = result.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = _number_or_name(r"^\.target (\w+)", ptx)
        command = [get_ptxas(card).path, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", report)))
    registers = int(_number_or_name(r"Used (\d+) registers", report))
    vectorized = re.search(r"ld\.global[\w.:]*\.v(4\.b32|2\.b64)", ptx) is not None
    loads = len(re.findall(r"ld\.global", ptx))
    return Resources(name, number, card, warps, result.metadata.shared, registers, spilled, vectorized, loads)


def _number_or_name(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} is not in the compiler's output"
    return match[1]


def table(results: Sequence[Resources]) -> str:
    """The Markdown table of docs/kernels.md: one line per case, one column per card."""
    cards = sorted({one.card for one in results})
    lines = [
        "| kernel | warps | " + " | ".join(f"sm_{card}" for card in cards) + " |",
        "|---|---|" + "---|" * len(cards),
    ]
    for name, number in dict.fromkeys((one.name, one.case) for one in results):
        of_case = {one.card: one for one in results if (one.name, one.case) == (name, number)}
        cells = [_cell(of_case[card]) for card in cards]
        title = f"{name.replace('_kernel', '').replace('._', ' ')}{_variant(name, number)}"
        lines.append(f"| {title} | {of_case[cards[0]].warps} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _variant(name: str, number: int) -> str:
    case = CASES[name][number]
    parts = [
        f"{key.lower()} {value}" for key, value in case.items() if not isinstance(value, str) and key != "num_warps"
    ]
    return f" ({', '.join(parts)})" if len(CASES[name]) > 1 else ""


def _cell(one: Resources) -> str:
    spilled = f", spills {one.spilled} B" if one.spilled else ""
    return f"{one.registers} / {one.shared} B{spilled}"


def needs(results: Sequence[Resources]) -> dict[str, dict[int, Need]]:
    """The table of kernels/resources.py: the most that a program of each kernel needs on each card."""
    by_kernel: dict[str, dict[int, Need]] = {}
    for one in results:
        registers, shared = by_kernel.setdefault(one.name, {}).get(one.card, (0, 0))
        of_program = 32 * one.warps * one.registers
        by_kernel[one.name][one.card] = Need(max(registers, of_program), max(shared, one.shared))
    return by_kernel


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, nargs="+", default=list(SHARED_BYTES))
    parser.add_argument("--needs", action="store_true", help="print the table of kernels/resources.py")
    options = parser.parse_args()
    results = list(compiled(options.cards))
    if options.needs:
        for name, by_card in needs(results).items():
            print(f"    {name!r}: {{{', '.join(f'{card}: Need{tuple(need)}' for card, need in by_card.items())}}},")
    else:
        print(table(results), end="")


if __name__ == "__main__":
    main()
