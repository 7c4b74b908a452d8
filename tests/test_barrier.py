"""The barrier as a loss term: nothing at the reference, exactly its formula away from it."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import tempfile

import pytest
import torch
from torch.testing import assert_close

from mechinterp.digests import tensors_sha256
from mechinterp.loading import wrap
from studies import finetune_training as training
from studies.finetune_barrier import AGGREGATES, barrier_loss, deciding_rows, divergences
from studies.finetune_config import Barrier, Lora, Training
from studies.finetune_data import TrainingExample
from studies.finetune_lora import earlier, live, put_weights, trainable, weights_of
from tests.architectures import shared, tiny

ARMS = [Barrier(kind=kind, tau=0.0) for kind in AGGREGATES]
LORA = Lora(rank=2, alpha=4)
SMALL = Training(
    loss="completion", n_steps=3, batch_size=2, save_every=3, learning_rate=2e-2, lora=LORA, warmup_fraction=0
)


def data_of(n=6):
    """Prompts of two lengths with completions of two lengths."""
    generator, made = torch.Generator().manual_seed(0), []
    for i in range(n):
        prompt = tuple(torch.randint(20, 80, (3 + i % 2,), generator=generator).tolist())
        body = tuple(torch.randint(20, 80, (3 + i % 3,), generator=generator).tolist())
        made.append(TrainingExample("p", "q", prompt, body, len(body), 1, False, (), (1, 5), 90))
    return made


def base_of():
    return wrap(shared("llama"), None, name="llama")


def arm(**given) -> Training:
    return SMALL.model_copy(update={"barrier": Barrier(**given)})


def batch_of(settings):
    return training.collate([training._row(example, settings) for example in data_of(4)])


def loss_of(settings, model, base, start=None):
    """What the Trainer takes the gradient of, on one batch."""
    from transformers import TrainingArguments

    batch = batch_of(settings)
    made = training._trainer(settings, base, start)(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(), use_cpu=True, report_to="none", disable_tqdm=True
        ),
        compute_loss_func=training._loss(settings),
    )
    return made.compute_loss(model, batch), made.state.log_history


def gradients(loss, model):
    own = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, own)


def moved(base, size=0.3):
    """A student away from the base: its LoRA's second factor is no longer zero."""
    model = trainable(base, LORA, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator)
    return model


def naive(model, base, example, direction):
    """The divergences of one completion, row by row, with torch's own distributions."""
    ids, start = torch.tensor([example.ids]), len(example.prompt)
    student = model(input_ids=ids).logits[0].log_softmax(-1)
    with torch.no_grad():
        reference = base.backend.model(input_ids=ids).logits[0].log_softmax(-1)
    values = []
    for place in range(start, start + len(example.body) + 1):
        p, q = (student, reference) if direction == "reverse" else (reference, student)
        values.append((p[place - 1].exp() * (p[place - 1] - q[place - 1])).sum())
    return torch.stack(values)


def naive_aggregate(k, kind):
    match kind:
        case "mean":
            return k.mean()
        case "rmse":
            return (k.square().mean() + 1e-8).sqrt()
        case "p95":
            return torch.quantile(k, 0.95)
    return k.max()


@pytest.mark.parametrize("kind", AGGREGATES)
def test_at_initialisation_the_barrier_adds_nothing_and_gradients_are_those_without_it(kind):
    """LoRA begins with B = 0: every divergence is 0, where a bare root or hinge would give NaN."""
    base = base_of()
    model = trainable(base, LORA, seed=1).eval()
    plain, _ = loss_of(SMALL, model, base)
    held, log = loss_of(arm(kind=kind, tau=1e-3), model, base)
    assert_close(held, plain, rtol=0, atol=0)
    assert log[0]["fired"] == 0 and log[0]["barrier"] == 0 and log[0]["completions"] == 4
    for with_it, without in zip(gradients(held, model), gradients(plain, model), strict=True):
        assert torch.equal(with_it, without) and with_it.isfinite().all()


@pytest.mark.parametrize("kind", AGGREGATES)
def test_gradients_at_zero_divergence_are_finite_where_the_hinge_is_open(kind):
    """tau = 0 at the reference itself: an rmse is then the root of its epsilon, and its slope is finite."""
    base = base_of()
    model = trainable(base, LORA, seed=1).eval()
    held, _ = loss_of(arm(kind=kind, tau=0.0, weight=1.0), model, base)
    assert all(g.isfinite().all() for g in gradients(held, model)) and held.isfinite()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("kind", AGGREGATES)
def test_loss_and_gradient_are_those_of_the_formula_written_out(kind, direction):
    base = base_of()
    model = moved(base)
    per_row = [naive(model, base, example, direction) for example in data_of(4)]
    values = torch.stack([naive_aggregate(k, kind) for k in per_row])
    tau = float(values.detach().sort().values[:2].mean())  # three of four completions lie above it
    expected = 0.3 * (values - tau).clamp_min(0).mean()
    plain, _ = loss_of(SMALL, model, base)
    held, log = loss_of(arm(kind=kind, tau=tau, direction=direction), model, base)
    assert_close(held - plain, expected, rtol=1e-4, atol=1e-6)
    assert held > plain and log[0]["fired"] == 3
    assert log[0][f"kl_{kind}"] == pytest.approx(float(values.detach().mean()), rel=1e-4)
    wanted = gradients(plain + expected, model)
    for ours, theirs in zip(gradients(held, model), wanted, strict=True):
        assert_close(ours, theirs, rtol=2e-3, atol=2e-5)


def test_only_the_completion_counts_and_padding_does_not():
    """Whatever the rows of prompt and padding say, the divergence is that of the completion's tokens."""
    completion = batch_of(arm(kind="mean"))["completion"]
    places, kept = deciding_rows(completion)
    for row, example in enumerate(data_of(4)):
        start = len(example.prompt)
        decides = list(range(start - 1, start + len(example.body)))
        assert places[row][kept[row]].tolist() == decides, "up to the first end of turn, not what follows"
    with pytest.raises(ValueError, match="no completion"):
        deciding_rows(torch.zeros(2, 4, dtype=torch.bool))


def test_a_completion_has_its_own_hinge_whatever_stands_beside_it():
    k = torch.tensor([[3.0, 3.0], [0.1, 0.1]])
    kept = torch.ones(2, 2, dtype=torch.bool)
    alone = barrier_loss(k[:1], kept[:1], Barrier(kind="mean"))
    assert_close(alone, torch.tensor(0.3 * 2.5))
    assert_close(barrier_loss(k, kept, Barrier(kind="mean")), alone / 2)


def test_bf16_logits_are_compared_in_fp32():
    """1e-8 under the root is 0 in fp16, and a half's exponents are too few for a divergence."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 1, 4, 50, generator=generator).bfloat16()
    found = divergences(p, q, "reverse")
    assert found.dtype == torch.float32
    assert_close(found, divergences(p.float(), q.float(), "reverse"))


def test_the_weight_grows_by_round_and_each_aggregate_has_its_own_threshold():
    grown = Barrier(kind="mean", power=2.0)
    assert [grown.weight_in(r) for r in range(3)] == pytest.approx([0.3, 1.2, 2.7])
    assert Barrier(kind="mean").weight_in(4) == 0.3
    assert (Barrier(kind="mean").threshold, Barrier(kind="rmse").threshold) == (0.5, 1.0)
    for kind in ("p95", "max"):
        with pytest.raises(ValueError, match=kind):
            Barrier(kind=kind)
        assert Barrier(kind=kind, tau=2.0).threshold == 2.0


def test_the_reference_is_the_base_or_the_round_before():
    """A student at the earlier round's weights lies away from the base, and nowhere from that round."""
    base = base_of()
    start = earlier(base, LORA, weights_of(moved(base)), round_index=1)
    student = trainable(base, LORA, seed=5).eval()
    put_weights(student, start.weights)
    for reference, away in (("base", True), ("previous", False)):
        _, log = loss_of(arm(kind="mean", tau=0.01, reference=reference), student, base, start)
        assert (log[0]["kl_max"] > 0.1) == away == (log[0]["fired"] == 4)


def test_a_barrier_holds_training_near_the_base_and_leaves_the_base_alone(tmp_path):
    hf_model = tiny("llama").requires_grad_(True)
    base = wrap(hf_model, None, name="llama")
    before = tensors_sha256(hf_model.state_dict())
    ends = {}
    for name, settings in {"off": SMALL, "held": arm(kind="rmse", tau=0.0, weight=30.0)}.items():
        model, step, log = training.train(base, data_of(), settings, tmp_path / name, seed=1)
        ends[name] = torch.cat([naive(model, base, one, "reverse").detach() for one in data_of()]).mean()
        assert step == 3 and sum("fired" in entry for entry in log) == (3 if name == "held" else 0)
    assert ends["held"] < 0.5 * ends["off"]
    assert tensors_sha256(hf_model.state_dict()) == before
    assert all(p.requires_grad and p.grad is None for p in hf_model.parameters())


def test_a_round_goes_on_from_the_weights_of_the_one_before(tmp_path):
    base = base_of()
    first, _, _ = training.train(base, data_of(), SMALL, tmp_path / "1", seed=1)
    start = earlier(base, LORA, weights_of(first), round_index=1)
    tokens = torch.tensor([data_of()[0].ids])
    assert_close(start.model.forward(tokens).logits, live(base, first).forward(tokens).logits)
    still = SMALL.model_copy(update={"n_steps": 1, "learning_rate": 1e-9})
    second, _, _ = training.train(base, data_of(), still, tmp_path / "2", seed=2, start=start)
    for name, weight in weights_of(second).items():
        assert_close(weight, start.weights[name], rtol=0, atol=1e-7)
    wrong = trainable(base, Lora(rank=3), seed=0)
    with pytest.raises(ValueError, match="another adapter"):
        put_weights(wrong, start.weights)
