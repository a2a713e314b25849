"""Run the same recipes with the code of two checkouts and compare all results, bit for bit.

    python tools/compare_checkouts.py BASE NEW [--recipes NAME...] [--out DIR]

For changes that must not change results. Tiny models in fp32 on the CPU, about 15 seconds per recipe. Only the command
line of the checkouts is used, with this interpreter; their modules may be organized differently. Compared: losses,
evaluations and answers, tensors of checkpoints and exports, rendered rows, receipts, token indexes, the ledger, the
decisions of the plan, and the names of files, events and fields. Not compared: measured times and memory, absolute
paths, and human-readable text. Exits with code 1 if anything differs. --out: a new directory for the results; without
it they are kept only if something differs.
"""

import argparse
import io
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compare.recipes import CASES, Case, write_models
from compare.results import Finding, compare
from compare.running import Checkout, Run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    names = [case.name for case in CASES]
    parser.add_argument("--recipes", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    checkouts = {"base": Checkout(arguments.base.resolve()), "new": Checkout(arguments.new.resolve())}
    for checkout in checkouts.values():
        checkout.require_own_code()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="compare-"))
    if out.is_dir() and any(out.iterdir()):
        parser.error(f"{out} is not empty")
    with redirect_stdout(io.StringIO()):  # libraries print when they are imported
        write_models(out.resolve() / "models")
    cases = [case for case in CASES if case.name in arguments.recipes]
    different = [case.name for case in cases if show(case, run_both(case, checkouts, out.resolve()))]
    if different:
        print(f"different: {', '.join(different)}; the results are in {out}")
        return 1
    print(f"equal: {', '.join(case.name for case in cases)}")
    if arguments.out is None:
        shutil.rmtree(out)
    return 0


def run_both(case: Case, checkouts: dict[str, Checkout], out: Path) -> list[Finding]:
    """Run a case with both checkouts concurrently and compare the results."""
    directories = {name: out / name / case.name for name in checkouts}
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(Run(case, checkout, directories[name]).run) for name, checkout in checkouts.items()]
        for run in runs:
            run.result()
    return compare(directories["base"], directories["new"])


def show(case: Case, findings: list[Finding]) -> bool:
    """Print the table of a case and return whether anything differs."""
    for finding in findings:
        if finding.number or finding.difference:
            verdict = finding.difference or f"equal ({finding.number})"
            print(f"{case.name:23} {finding.what:12} {verdict}", flush=True)
    return any(finding.difference for finding in findings)


if __name__ == "__main__":
    sys.exit(main())
