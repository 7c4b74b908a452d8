"""`python -m benchmarks WORKLOAD [--rounds N] [--threads N] [--device cuda] [--quick] [--json FILE]`."""

import os

# Spinning OpenMP threads make any competing process cost several times its share; must be set before torch
# loads.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import importlib  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.subject import EMBEDDED  # noqa: E402

WORKLOADS = ("activations", "attention", "divergence", "generation", "lens", "patching", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda; on a GPU the wall ratio is the figure"
    )
    parser.add_argument("--model", default=EMBEDDED, help="a name, id or directory that loads")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()

    from benchmarks.subject import Subject
    from benchmarks.timing import machine, show

    subject = Subject(given.model, given.dtype, given.device, given.threads)
    workload = importlib.import_module(f"benchmarks.{given.workload}")
    found = workload.measure(subject, rounds=given.rounds, quick=given.quick)
    report = {"workload": given.workload, "machine": machine(subject), **found}
    print(show(report))
    if given.json is not None:
        from mechinterp.json_io import write_json

        write_json(given.json, report)


if __name__ == "__main__":
    main()
