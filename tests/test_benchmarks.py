"""The benchmarks: ratios within a round, outputs held to ours, and the keys that readers of JSON rely on."""

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks import activations, attention, divergence, generation, lens, memory, patching, scale
from benchmarks.memory import extra_peak
from benchmarks.subject import Subject
from benchmarks.timing import Arm, error, interleave, machine, show
from mechinterp import running
from mechinterp.backends.twin import twin
from mechinterp.gather import gather
from mechinterp.json_io import write_json
from mechinterp.sites import Site


def work(n: int, value: float = 1.0):
    """CPU work in proportion to n, without sleeping: time is counted in CPU seconds."""

    def run() -> torch.Tensor:
        total = 0.0
        for i in range(n):
            total += math.sqrt(i)
        return torch.tensor([value, total * 0])

    return run


def test_a_ratio_is_how_much_more_work_the_peer_does():
    found = interleave(Arm("ours", work(200_000)), [Arm("peer", work(800_000))], rounds=7)
    assert 2.0 < found["peer"]["ratio"] < 8.0  # 4, as far as another process on the core lets it
    assert found["peer"]["cpu_seconds"] > 2 * found["ours"]["cpu_seconds"]


def test_a_sample_of_the_work_counts_as_the_whole():
    whole = Arm("whole", work(200_000))
    tenth = Arm("tenth", work(20_000), share=0.1)
    found = interleave(Arm("ours", work(200_000)), [whole, tenth], rounds=5)
    assert 0.6 < found["tenth"]["ratio"] / found["whole"]["ratio"] < 1.6
    assert found["tenth"]["sampled_share"] == 0.1


def test_every_round_runs_each_arm_once_in_turning_order():
    order: list[str] = []

    def noted(name: str) -> Arm:
        return Arm(name, lambda: order.append(name) or torch.zeros(1))

    interleave(noted("a"), [noted("b"), noted("c")], rounds=3)
    assert order == [*"abc", *"abc", *"cba", *"abc"]  # the first is the warm-up


def test_the_error_is_of_what_both_have():
    ours = Arm("ours", lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    first_row = (lambda x: x[:1], lambda x: x)
    peers = [
        Arm("same", lambda: torch.tensor([[1.0, 2.0]]), view=first_row),
        Arm("off", lambda: torch.tensor([[1.0, 2.0], [3.0, 9.0]])),
        Arm("other", lambda: torch.zeros(7), view=None),
        Arm("shorter", lambda: torch.zeros(7)),
    ]
    found = interleave(ours, peers, rounds=1)
    assert found["same"]["max_error"] == 0.0
    assert found["off"]["max_error"] == pytest.approx(5 / math.sqrt(30))
    assert found["other"]["max_error"] is None and found["shorter"]["max_error"] is None


def test_ids_are_compared_by_the_share_that_differs():
    assert error(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 0, 4]])) == 0.25


def test_the_peers_leave_nothing_on_the_model_that_ours_runs_on(real):
    """Hooks of a peer would be run, and timed, in ours; `unharmed` looks for them after this test."""
    prompts = [real.chat("Why?").tokens[0]]
    with torch.no_grad():
        found = activations._case(real, prompts, [torch.tensor([3])], rounds=1)
    assert all(entry["max_error"] < 1e-4 for name, entry in found.items() if name != "bare_forward")


def test_every_entry_says_how_it_was_taken():
    found = interleave(Arm("ours", work(1000)), [Arm("peer", work(1000))], rounds=2)
    assert set(found["peer"]) >= {"ratio", "wall_ratio", "cpu_seconds", "wall_seconds", "rounds", "max_error"}
    assert found["peer"]["rounds"] == found["ours"]["rounds"] == 2
    assert set(machine(Subject())) >= {
        "threads",
        "dtype",
        "torch",
        "transformers",
        "transformer-lens",
        "nnsight",
    }


@pytest.fixture
def toy_arms(monkeypatch):
    """The workloads on the real model's sizes, with toy arms in place of the timed ones."""
    real = interleave

    def small(ours: Arm, peers: list[Arm], rounds: int):
        return real(Arm("ours", work(500)), [Arm(p.name, work(500), p.share) for p in peers], 1)

    for module in (activations, attention, divergence, generation, lens, patching):
        monkeypatch.setattr(module, "interleave", small)


def ends(tree: object, path: tuple[str, ...] = ()) -> set[str]:
    if not isinstance(tree, dict):
        return {".".join(path)}
    return {end for key, value in tree.items() for end in ends(value, (*path, key))}


KEYS = {
    generation: ["greedy_b1.generate.ratio", "greedy_b16.generate.ratio", "topp_b16.generate.ratio",
                 "topp_b64.generate.ratio", "seed_loop_b1.ratio", "greedy_b1.nnsight.ratio"],
    activations: [f"{reading}.{peer}.ratio" for reading in ("last_token", "mean_response")
                  for peer in ("transformer_lens", "nnsight", "hf_batched")],
    attention: ["T512.bare_forward.overhead", "T512.eager.ratio", "T1024.eager.ratio",
                "T1024.eager.memory_ratio", "T1024.transformer_lens.ratio", "T4096.eager.ratio",
                "T4096.eager.memory_ratio", "T4096.bare_forward.overhead"],
    divergence: ["stage.seed_formula.ratio", "end_to_end.naive.ratio", "end_to_end.naive.memory_ratio"],
    lens: [f"rows{n}.{key}" for n in (1, 4)
           for key in ("nnterp_style.ratio", "transformer_lens.ratio", "bare_forward.overhead")],
    patching: ["grid.transformer_lens.ratio", "grid.nnsight.ratio", "grid.executed_over_minimum.ratio",
               "column.transformer_lens.ratio", "column.bare_forward.overhead", "grid_T128.nnsight.ratio",
               "heads.transformer_lens.ratio", "growth.twice_the_layers.ratio"],
}  # fmt: skip


@pytest.mark.parametrize("workload", KEYS, ids=lambda module: module.__name__.split(".")[-1])
def test_the_keys_that_readers_rely_on_are_there(workload, toy_arms, monkeypatch, tmp_path, real):
    """performance.md 11; only the timed loops are toys: model and prompts are those of the benchmark."""
    monkeypatch.setattr(Subject, "load", lambda self: real)
    if workload is activations:
        monkeypatch.setattr(
            activations, "gather", lambda model, prompts, sites, at: torch.ones(len(prompts), 30, 2)
        )
        monkeypatch.setattr(activations, "_one", lambda hf, prompt, at: torch.ones(30, 2))
    elif workload is lens:
        arms = dict.fromkeys(lens.ARMS, lambda model, ids, rows: lambda: torch.ones(1))
        monkeypatch.setattr(lens, "ARMS", arms)
    elif workload is attention:
        monkeypatch.setattr(
            attention, "ARMS", dict.fromkeys(attention.ARMS, lambda model, n: lambda: torch.ones(1))
        )
        megabytes = {"ours": 50.0, "bare_forward": 40.0, "eager": 1300.0, "transformer_lens": 250.0}
        monkeypatch.setattr(memory, "extra_peak", lambda _, case, arm, subject: megabytes[arm])
    elif workload is divergence:
        held = {"ours": 50.0, "naive": 900.0}
        monkeypatch.setattr(memory, "extra_peak", lambda _, case, arm, subject: held[arm])
    elif workload is patching:
        monkeypatch.setattr(
            patching, "PEERS", dict.fromkeys(patching.PEERS, lambda model, n, cells: lambda: torch.ones(1))
        )
        monkeypatch.setattr(patching, "_lens_heads", lambda model, n, cells: lambda: torch.ones(1))
    elif workload is generation:
        monkeypatch.setattr(generation, "_against_recomputation", lambda model, prompt, n: 0.0)
    found = workload.measure(Subject(), rounds=1, quick=False)
    assert set(KEYS[workload]) <= ends(found)
    report = {"workload": workload.__name__, "machine": machine(Subject()), **found}
    write_json(tmp_path / "out.json", report)
    assert ends(json.loads((tmp_path / "out.json").read_text())) == ends(report)
    lines = show(report).splitlines()
    for key in KEYS[workload]:
        case, *peer, _ = key.split(".")
        assert any(line.startswith(f"{case}.{peer[0] if peer else 'loop'}") for line in lines)
    if workload is attention:
        assert found["T512"]["eager"]["memory_ratio"] == 26.0
        shown = next(line for line in lines if line.startswith("T512.bare_forward"))
        assert f"overhead {1 / found['T512']['bare_forward']['ratio']:.3f}" in shown


def test_generation_equals_its_definition(real):
    """What is timed is right: no id differs from a full pass without a cache at every token."""
    prompt = real.chat("Why?", system="You are an AI assistant.").tokens
    assert generation._against_recomputation(real, prompt, 3) == 0.0


def test_gathered_activations_equal_the_naive_reading(real):
    prompts = [real.chat(q).tokens[0] for q in ("Why?", "What is the sea made of?")]
    at = [torch.arange(len(p) - 3, len(p)) for p in prompts]
    sites = [Site("resid_post", layer) for layer in range(real.dims.n_layers)]
    hf = twin(real.backend.model)  # the library's own hooks stay on what is asked for hidden states
    with torch.no_grad():
        naive = torch.stack([activations._one(hf, p, a) for p, a in zip(prompts, at, strict=True)])
    ours = gather(real, prompts, sites, at)
    found = error(ours[:, :-1], naive[:, :-1])
    assert found is not None and found < 5e-6


@pytest.mark.parametrize("long", [1, 10_000], ids=["reducing hook", "output_attentions"])
def test_attention_of_every_peer_is_ours(real, monkeypatch, long):
    """What is timed is the same numbers; `unharmed` looks for hooks of the peers."""
    monkeypatch.setattr(attention, "LONG", long)
    ours = attention._ours(real, 40)()
    assert ours.shape == (20, 30, 9, 6)
    peers = ["eager", "transformer_lens"] if long > 1 else ["eager"]
    for name in peers:
        assert float((attention.ARMS[name](real, 40)() - ours).abs().max()) < 5e-6, name
    assert attention._bare_forward(real, 40)().shape == (1, 40, 576)


@pytest.mark.parametrize("n_rows", lens.ROWS)
def test_the_lens_of_every_peer_is_ours(real, n_rows):
    """What is timed is the same numbers; `unharmed` looks for hooks of the peers."""
    arms = {name: make(real, *lens.asked(12, n_rows)) for name, make in lens.ARMS.items()}
    ours = arms["ours"]()
    assert ours.shape == (n_rows, 30) and arms["bare_forward"]().shape == (1, 12, 576)
    for name in ("nnterp_style", "transformer_lens"):
        assert float((arms[name]() - ours).abs().max()) < 2e-4, name


def test_the_divergences_of_the_peer_are_ours(real):
    arms = {name: make(real, 1, 3) for name, make in divergence.ARMS.items()}
    ours = arms["ours"]()
    assert ours.shape == (11, 11) and float(ours.max()) > 1e-3
    assert float((arms["naive"]() - ours).abs().max()) < 5e-6


GROWTH = """
import torch
from benchmarks.memory import grown

def run():
    torch.ones(20, 2**20)  # 80 MiB, gone before the next
    torch.ones(10, 2**20)

held = torch.ones(30, 2**20)
print(grown(lambda: torch.ones(1).sum(), run))
"""


def test_peak_memory_is_what_the_work_adds_and_no_more():
    """In a process of its own, as every measurement: in a used heap what was freed may stay resident."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert 78 < float(done.stdout) < 100


def test_what_fails_in_its_own_process_is_told():
    with pytest.raises(RuntimeError, match=r"T64.ours failed in its own process: [\s\S]*nobody"):
        extra_peak("nobody", "T64", "ours", Subject(threads=1))


def test_an_unknown_workload_is_refused_with_those_there_are():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "patchin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "activations" in done.stderr and "generation" in done.stderr


def test_what_directories_and_engines_cost_has_its_keys(monkeypatch):
    def as_serial(asked, folder, **more):
        running.run(asked, folder, progress=False, report=False)

    monkeypatch.setattr(scale, "SIZES", (3, 30))
    monkeypatch.setattr(scale.ray_engine, "run_ray", as_serial)
    monkeypatch.setattr(scale.jobs, "run_jobs", lambda asked, folder, n, **more: as_serial(asked, folder))
    monkeypatch.setattr(scale, "ENGINE_CELLS", 60)
    found = scale.measure(Subject(), rounds=1, quick=False)
    assert found["resume30"]["resume3"]["ratio"] > 1
    assert found["ray"]["serial"]["overhead"] > 0 and found["serial"]["serial"]["overhead"] == 1
    assert set(found["n3"]) == {"run", "open", "resume", "status", "report", "run_ms_per_cell"}
    shown = show({"workload": "scale", "machine": {}, **found})
    assert "resume30.resume3.ratio" in shown and "ray.serial.overhead" in shown
