"""Kernels compared with plain torch, torch.compile and, if installed, liger-kernel.

    python benchmarks/kernels.py [--device cuda|cpu] [--runs 9] [--only NAME ...] [--compile]

On a GPU: Triton kernels with the shapes of LLaMA 8B in bf16; time of the kernels alone (device_time.py), forward and
backward apart, on inputs that rotate through more memory than the cache; bandwidth relative to the measured copy rate,
peak memory. Requires only torch and triton. On a CPU: the CPU kernels with the shapes of SmolLM2-135M in
fp32, CPU seconds of one thread, and the output layer with its loss compared with all logits at once. Implementations
alternate; numbers are medians with minimum and maximum. --compile: torch.compile on a CPU too, with its compile time.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import machine
import torch
from device_time import CudaDevice, kernel_seconds
from liger_kernels import liger

from tunesmith.kernels.dispatch import TABLE, Kernels
from tunesmith.kernels.linear_cross_entropy import linear_cross_entropy_reference
from tunesmith.kernels.lora_block import Adapted

Function = Callable[..., Any]
Step = Callable[[Function], None]
REPEATS = 20
"""Calls of a measurement on a GPU."""
SETS = 3
"""Sets of inputs on a GPU, in turn; each is larger than the cache."""
SIZES = {
    "cuda": {"T": 8192, "H": 4096, "I": 14336, "V": 128256, "heads": 32, "groups": 8, "D": 128, "R": 16},
    "cpu": {"T": 1024, "H": 576, "I": 1536, "V": 49152, "heads": 9, "groups": 3, "D": 64, "R": 16},
}


def drawn(device: str, *shape: int, scale: float = 1.0, trained: bool = True) -> torch.Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_(trained)


class Case(NamedTuple):
    """An operation with inputs. call: the outputs of an implementation; leaves: inputs with a gradient; grads: of the
    outputs; num_bytes: minimum moved forward and backward; first: the tensor that selects the implementation."""

    call: Callable[[Function], Any]
    leaves: list[torch.Tensor]
    grads: list[torch.Tensor]
    num_bytes: int
    first: torch.Tensor

    def forward(self, function: Function) -> tuple[torch.Tensor, ...]:
        outputs = self.call(function)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def both_ways(self, function: Function) -> None:
        torch.autograd.grad(self.forward(function), self.leaves, self.grads)

    def backward(self, function: Function) -> Callable[[], object]:
        """Return the backward pass alone, which can be called again and again."""
        outputs = self.forward(function)
        return lambda: torch.autograd.grad(outputs, self.leaves, self.grads, retain_graph=True)


def cases(device: str) -> dict[str, Case]:
    """Return each operation with new inputs."""
    s = SIZES[device]
    hidden, residual, norm = drawn(device, s["T"], s["H"]), drawn(device, s["T"], s["H"]), drawn(device, s["H"])
    gate, up = drawn(device, s["T"], s["I"]), drawn(device, s["T"], s["I"])
    query = drawn(device, 1, s["T"], s["heads"], s["D"]).transpose(1, 2)
    key = drawn(device, 1, s["T"], s["groups"], s["D"]).transpose(1, 2)
    angle = torch.rand(1, s["T"], s["D"] // 2, device=device).repeat(1, 1, 2)
    tables = [table.to(hidden.dtype) for table in (angle.cos(), angle.sin())]
    weight, a, b = (
        drawn(device, s["I"], s["H"], scale=0.02, trained=False),
        drawn(device, s["R"], s["H"], scale=0.02),
        drawn(device, s["I"], s["R"], scale=0.02),
    )
    down, a2, b2 = (
        drawn(device, s["H"], s["I"], scale=0.02, trained=False),
        drawn(device, s["R"], s["I"], scale=0.02),
        drawn(device, s["H"], s["R"], scale=0.02),
    )
    one, two = torch.randn_like(hidden), torch.randn_like(gate)
    turned = [torch.randn_like(query), torch.randn_like(key)]
    h, i, q = hidden.nbytes, gate.nbytes, query.nbytes + key.nbytes
    lora = [hidden, a, b]
    one_layer = [Adapted(weight, None, a, b, 2.0)]
    layer_bytes = 4 * (h + i) + 2 * weight.nbytes
    return {
        "rms_norm": Case(lambda f: f(hidden, norm, 1e-5), [hidden, norm], [one], 5 * h, hidden),
        "add_rms_norm": Case(
            lambda f: f(hidden, residual, norm, 1e-5), [hidden, residual, norm], [one, one], 8 * h, hidden
        ),
        "layer_norm": Case(lambda f: f(hidden, norm, norm, 1e-5), [hidden, norm], [one], 5 * h, hidden),
        "rope": Case(lambda f: f(query, key, *tables), [query, key], turned, 4 * q, query),
        "swiglu": Case(lambda f: f(gate, up), [gate, up], [two], 8 * i, gate),
        "geglu": Case(lambda f: f(gate, up), [gate, up], [two], 8 * i, gate),
        "lora_linear": Case(lambda f: f(hidden, weight, None, a, b, 2.0), lora, [two], layer_bytes, hidden),
        "norm_lora_linears": Case(
            lambda f: f(hidden, norm.detach(), 1e-5, 0.0, one_layer), lora, [two], layer_bytes, hidden
        ),
        "gated_lora_linear": Case(
            lambda f: f(gate, up, Adapted(down, None, a2, b2, 2.0)),
            [gate, up, a2, b2],
            [one],
            8 * i + 2 * h + 2 * down.nbytes,
            gate,
        ),
    }


def seconds(step: Callable[[], object], device: str) -> float:
    """CPU seconds of a call, or the seconds of its kernels on the GPU."""
    if device == "cpu":
        before = time.process_time()
        step()
        return time.process_time() - before
    return kernel_seconds(CudaDevice(), [step], repeats=REPEATS)


def directions(sets: list[Case], function: Function) -> dict[str, float]:
    """Seconds of the kernels of both directions on a GPU, with inputs in turn."""
    gpu = CudaDevice()
    forward = [partial(case.forward, function) for case in sets]
    backward = [case.backward(function) for case in sets]
    return {
        "forward": kernel_seconds(gpu, forward, repeats=REPEATS),
        "backward": kernel_seconds(gpu, backward, repeats=REPEATS),
    }


def copy_rate(device: str, runs: int) -> float:
    """Return the bytes per second, read and written, of torch's copy of a tensor larger than any cache."""
    source = torch.ones((1 << 30 if device == "cuda" else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(runs + 2)][2:]
    return 2 * source.nbytes / sorted(times)[len(times) // 2]


def measure(device: str, runs: int, only: list[str], compiled: bool) -> tuple[dict[str, Any], list[list[str]]]:
    rate = copy_rate(device, runs)
    others, kernels = liger(), Kernels()
    results: dict[str, Any] = {"copy_bytes_per_s": rate, "operations": {}}
    table = [
        [
            "operation, forward and backward",
            "implementation",
            "ms (min to max)",
            "copy rate fraction",
            "peak MB",
            "compile s",
        ]
    ]
    num_sets = SETS if device == "cuda" else 1
    drawn_cases = [cases(device) for _ in range(num_sets)]
    for name, case in drawn_cases[0].items():
        if only and name not in only:
            continue
        sets, step = [of_name[name] for of_name in drawn_cases], case.both_ways
        entrants: dict[str, Callable[..., Any]] = {"torch": TABLE[name][-1].function}
        if device == "cuda" or compiled:
            entrants["torch.compile"] = torch.compile(TABLE[name][-1].function)
        if device == "cuda" and name in others:
            entrants["liger"] = others[name]
        chosen = kernels.chosen(name, case.first)
        if chosen.function is not entrants["torch"]:
            entrants[f"ours: {chosen.name}"] = chosen.function
        compile_s, faults = {}, {}
        for who, function in list(entrants.items()):
            started = time.perf_counter()
            try:
                step(function)  # first call, compiles
                step(function)
            except Exception as error:
                faults[who] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                del entrants[who]
            compile_s[who] = time.perf_counter() - started
        times: dict[str, list[float]] = {who: [] for who in entrants}
        halves: dict[str, list[dict[str, float]]] = {who: [] for who in entrants}
        peaks: dict[str, int | None] = dict.fromkeys(entrants)
        for _ in range(runs):
            for who, function in entrants.items():
                if device == "cuda":
                    peaks[who] = gpu_peak(partial(step, function))
                    halves[who].append(directions(sets, function))
                    times[who].append(sum(halves[who][-1].values()))
                else:
                    times[who].append(seconds(partial(step, function), device))
        results["operations"][name] = {
            "bytes": case.num_bytes,
            "faults": faults,
            "entrants": {
                who: {
                    **machine.spread(values),
                    "peak_bytes": peaks[who],
                    "first_calls_s": compile_s[who],
                    **spreads_of(halves[who]),
                }
                for who, values in times.items()
            },
        }
        for who, values in times.items():
            of = machine.spread(values)
            share = case.num_bytes / of["median"] / rate
            peak = peaks[who]
            took = f"{compile_s[who]:.1f}" if who == "torch.compile" else ""
            shown = f"{1e3 * of['median']:.3f} ({1e3 * of['low']:.3f} to {1e3 * of['high']:.3f})"
            table.append([name, who, shown, f"{share:.2f}", "" if peak is None else f"{peak / 1e6:.0f}", took])
        table += [[name, who, "failed", why, "", ""] for who, why in faults.items()]
    return results, table


def gpu_peak(step: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def spreads_of(halves: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the spread of each direction; empty if they were not measured apart."""
    names = halves[0] if halves else ()
    return {name: machine.spread([one[name] for one in halves]) for name in names}


HEADS = ("all logits", "ours", "ours, half masked")


def head(device: str, runs: int) -> tuple[dict[str, Any], list[list[str]]]:
    """Compare a frozen output layer with loss: all logits at once, fused, and fused with half of the labels masked."""
    s, steps = SIZES[device], {}
    hidden, weight = drawn(device, s["T"], s["H"]), drawn(device, s["V"], s["H"], scale=0.02, trained=False)
    labels = torch.randint(0, s["V"], (s["T"],), device=device)
    half = labels.clone()
    half[::2] = -100
    ours = Kernels().choose("linear_cross_entropy", hidden)
    for who, function, targets in (
        ("all logits", linear_cross_entropy_reference, labels),
        ("ours", ours, labels),
        ("ours, half masked", ours, half),
    ):
        steps[who] = lambda f=function, y=targets: torch.autograd.grad(f(hidden, weight, y)[0], hidden)
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(runs):
        for who, step in steps.items():
            times[who].append(seconds(step, device))
    peaks = {who: head_peak(device, who) for who in steps}
    whole, summary = machine.spread(times["all logits"])["median"], {}
    table = [["output layer and loss", "ms (min to max)", "relative time", "peak MB", "relative memory"]]
    for who, values in times.items():
        of = machine.spread(values)
        summary[who] = {**of, "peak_bytes": peaks[who], "time_ratio": of["median"] / whole}
        summary[who]["memory_ratio"] = peaks[who] / peaks["all logits"]
        shown = f"{1e3 * of['median']:.1f} ({1e3 * of['low']:.1f} to {1e3 * of['high']:.1f})"
        ratios = [f"{of['median'] / whole:.2f}", f"{peaks[who] / 1e6:.0f}", f"{summary[who]['memory_ratio']:.2f}"]
        table.append([who, shown, *ratios])
    return summary, table


def head_peak(device: str, who: str) -> int:
    """Return peak bytes above the inputs, measured in a separate process."""
    command = [sys.executable, __file__, "--device", device, "--head-peak", who]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_head_peak(device: str, who: str) -> None:
    s = SIZES[device]
    hidden, weight = drawn(device, s["T"], s["H"]), drawn(device, s["V"], s["H"], scale=0.02, trained=False)
    labels = torch.randint(0, s["V"], (s["T"],), device=device)
    if who.endswith("half masked"):
        labels[::2] = -100
    chosen = Kernels().choose("linear_cross_entropy", hidden)
    function = linear_cross_entropy_reference if who == "all logits" else chosen
    torch.autograd.grad(function(hidden[:8], weight, labels[:8])[0], hidden)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(function(hidden, weight, labels)[0], hidden)
        print(torch.cuda.max_memory_allocated() - before)
        return
    machine.reset_peak()
    before = machine.peak_bytes()
    torch.autograd.grad(function(hidden, weight, labels)[0], hidden)
    print(machine.peak_bytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=[], choices=["head", *TABLE])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--head-peak", choices=HEADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.head_peak:
        print_head_peak(arguments.device, arguments.head_peak)
        return
    results, table = measure(arguments.device, arguments.runs, arguments.only, arguments.compile)
    command = ["python", "benchmarks/kernels.py", *sys.argv[1:]]
    if len(table) > 1:
        machine.write(f"kernels-{arguments.device}", {"command": command, **results}, table, arguments.results)
    if not arguments.only or "head" in arguments.only:
        summary, table = head(arguments.device, arguments.runs)
        machine.write(f"head-{arguments.device}", {"command": command, "entrants": summary}, table, arguments.results)


if __name__ == "__main__":
    main()
