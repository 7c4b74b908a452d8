"""Ours against the peers, in one process, interleaved: `python -m benchmarks WORKLOAD [--json FILE]`."""
