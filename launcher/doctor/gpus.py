"""GPUs by nvidia-smi: they respond, have no memory errors, full PCIe links and one kind of connection."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.launcher.doctor.finding import Finding, Result
from tunesmith.launcher.doctor.programs import output_of
from tunesmith.launcher.hardware import DRIVER, ROOT

FIELDS = (
    *("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total"),
    *("remapped_rows.pending", "remapped_rows.failure", "pcie.link.width.current", "pcie.link.width.max"),
)
_QUERY = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
_YES = {"1", "yes"}


def check_gpus(root: Path = ROOT) -> Result:
    """Query nvidia-smi. A machine without a driver passes: its runs use the CPU."""
    output, failure = output_of(_QUERY)
    if failure.endswith("is not installed"):
        if not (root / DRIVER).exists():
            return Result("gpus", "no NVIDIA driver: runs use the CPU")
        why, remedy = "GPU faults cannot be detected", "install nvidia-smi, which comes with the driver"
        what = "there is a driver, but nvidia-smi is not installed"
        return Result("gpus", "an NVIDIA driver", (Finding("gpus", "warning", what, why, remedy),))
    if failure:
        remedy = "see `dmesg | grep -i xid`; reload the driver or restart the machine"
        finding = Finding("gpus", "error", f"nvidia-smi failed: {failure}", "no run can use the GPUs", remedy)
        return Result("gpus", "an NVIDIA driver", (finding,))
    rows = [row for row in csv.reader(output.splitlines(), skipinitialspace=True) if len(row) == len(FIELDS)]
    names = sorted({row[1] for row in rows})
    seen = f"{len(rows)} GPUs ({', '.join(names)}), driver {rows[0][2]}" if rows else "no GPUs listed by nvidia-smi"
    return Result("gpus", seen, tuple(_faults(rows)))


def _faults(rows: list[list[str]]) -> Iterator[Finding]:
    for index, _, _, errors, pending, failed, width, full_width in rows:
        if errors.isdigit() and int(errors):
            what = f"GPU {index} has {errors} uncorrected memory errors (ECC)"
            remedy = f"stop its processes, reset it with `nvidia-smi --gpu-reset -i {index}`; replace it if they return"
            yield Finding("gpus", "error", what, "weights in damaged memory make a run fail or wrong", remedy)
        if failed.lower() in _YES:
            what = f"GPU {index} could not remap damaged memory rows"
            yield Finding("gpus", "error", what, "its memory keeps failing", "replace the GPU")
        elif pending.lower() in _YES:
            what = f"GPU {index} has memory rows that will be remapped at its next reset"
            remedy = f"reset it before the next run: `nvidia-smi --gpu-reset -i {index}`"
            yield Finding("gpus", "warning", what, "until then it uses damaged memory", remedy)
        if width.isdigit() and full_width.isdigit() and int(width) < int(full_width):
            what = f"GPU {index} uses {width} of {full_width} PCIe lanes"
            why = "loading, offloading and communication without NVLink are slower"
            yield Finding("gpus", "warning", what, why, "reseat the GPU, check slot and riser")
    if len({row[1] for row in rows}) > 1:
        what = f"different GPUs: {', '.join(sorted({row[1] for row in rows}))}"
        remedy = "select GPUs of one kind with CUDA_VISIBLE_DEVICES"
        yield Finding("gpus", "warning", what, "a run is as fast as its slowest GPU, with its memory", remedy)


def check_topology() -> Result:
    """Read `nvidia-smi topo -m`: all pairs of GPUs should be connected in the same way."""
    output, failure = output_of(("nvidia-smi", "topo", "-m"))
    links = parse_links(output)
    if failure or not links:
        return Result("topology", "no pairs of GPUs")
    kinds = sorted(set(links.values()))
    seen = f"{len(links)} pairs of GPUs, connected by {', '.join(kinds)}"
    has_nvlink = [kind.startswith("NV") for kind in kinds]
    if any(has_nvlink) == all(has_nvlink):
        return Result("topology", seen)
    slow = [pair for pair, kind in links.items() if not kind.startswith("NV")]
    what = f"only some pairs of GPUs have NVLink; {slow[0][0]} and {slow[0][1]} have {links[slow[0]]}"
    why = "a collective is as slow as its slowest connection"
    remedy = "run on GPUs that NVLink connects (CUDA_VISIBLE_DEVICES); check bridges with `nvidia-smi nvlink -s`"
    return Result("topology", seen, (Finding("topology", "warning", what, why, remedy),))


def parse_links(text: str) -> dict[tuple[str, str], str]:
    """The connection of every pair of GPUs in the matrix of `nvidia-smi topo -m`, such as NV18 or SYS."""
    # The header is underlined in a terminal and in some versions also in a pipe.
    lines = [
        line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if "GPU0" in line or _is_row(line)
    ]
    if not lines:
        return {}
    columns = [name for name in lines[0] if re.fullmatch(r"GPU\d+", name)]
    links = {}
    for name, *cells in lines[1:]:
        for other, cell in zip(columns, cells, strict=False):
            if int(name[3:]) < int(other[3:]):
                links[name, other] = cell
    return links


def _is_row(line: str) -> bool:
    return re.match(r"GPU\d+\s", line) is not None
