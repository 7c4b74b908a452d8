"""`python -m benchmarks WORKLOAD [--rounds N] [--threads N] [--quick] [--json FILE]`."""

import os

# Spinning OpenMP threads make any competing process cost several times its share; must be set before torch
# loads.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import importlib  # noqa: E402
from pathlib import Path  # noqa: E402

WORKLOADS = ("activations", "attention", "generation", "lens", "patching")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()

    import torch

    from benchmarks.timing import machine, show

    torch.set_num_threads(given.threads)
    workload = importlib.import_module(f"benchmarks.{given.workload}")
    found = workload.measure(rounds=given.rounds, quick=given.quick, dtype=getattr(torch, given.dtype))
    report = {"workload": given.workload, "machine": machine(given.dtype), **found}
    print(show(report))
    if given.json is not None:
        from mechinterp.json_io import write_json

        write_json(given.json, report)


if __name__ == "__main__":
    main()
