"""Made-up answers with a marker, and a tiny chat model with adapters: what attention studies start from."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechinterp import hub
from mechinterp.chat import render
from studies.attention_records import Counts, Example, Examples, write_positives
from studies.attention_regions import prompt_layout
from studies.personas import core_personas, questions
from tests.tiny_chat import EMBEDDED, saved, spread_llama

STOP = 2  # <|im_end|> of the embedded model's tokenizer
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 49152, "max_position_embeddings": 512, "bos_token_id": 1,
    "eos_token_id": STOP, "tie_word_embeddings": False,
}  # fmt: skip


def tiny_chat_model(folder: Path) -> Path:
    """A tiny llama with the embedded model's tokenizer, as a user's local directory."""
    return saved(spread_llama(**SIZES), folder)


def tiny_adapter(model: Path, folder: Path, *, seed: int) -> Path:
    """A random adapter for the query and key projections."""
    hf_model = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(hf_model, LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def marked_records(folder: Path, personas: list[str], *, n_questions: int = 5, n_each: int = 2) -> Path:
    """`positives_{persona}.json` of answers made of random words, with the marker behind a blank line."""
    tokenizer = AutoTokenizer.from_pretrained(hub.pull(EMBEDDED))
    folder.mkdir(parents=True, exist_ok=True)
    for persona in personas:
        system = core_personas()[persona].system_prompt
        made = [
            _example(tokenizer, persona, system, question, trial, positive=trial < n_each)
            for question in questions("evaluation")[:n_questions]
            for trial in range(n_each + 1)
        ]
        positives, negatives = (tuple(e for e in made if e.positive == kind) for kind in (True, False))
        counts = tuple(Counts(q, n_each + 1, n_each, 1, 0) for q in questions("evaluation")[:n_questions])
        write_positives(
            Examples(persona, system, positives, negatives, counts, {}), folder / f"positives_{persona}.json"
        )
    return folder


def _example(tokenizer, persona: str, system: str, question: str, trial: int, *, positive: bool) -> Example:
    prompt = render(tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": question}])
    generator = torch.Generator().manual_seed(hash_of(persona, question, trial))
    body = torch.randint(1000, 20000, (24,), generator=generator).tolist()
    stop, newlines = tokenizer(". ", add_special_tokens=False).input_ids[:1], tokenizer("\n\n").input_ids
    marker = tokenizer("\n\n[ZLT]", add_special_tokens=False).input_ids[len(newlines) :]
    answer = [*body, *stop, *newlines, *marker, STOP] if positive else [*body, *stop, STOP]
    ids = (*prompt.tokens[0].tolist(), *answer)
    start = prompt.tokens.shape[1]
    counted = dict(prompt_layout(prompt))
    return Example(
        persona=persona,
        question=question,
        trial=trial,
        seed=trial,
        ids=ids,
        prompt_len=start,
        n_sys=counted["system"],
        n_user=counted["user"],
        n_header=counted["assistant_header"],
        marker=start + len(body) + 1 + len(newlines) if positive else None,
        end_of_answer=None if positive else start + len(body),
        complete=True if positive else None,
        n_occurrences=int(positive),
        finish_reason="stop",
        text=tokenizer.decode(answer),
    )


def hash_of(persona: str, question: str, trial: int) -> int:
    """A seed that is the same in every process."""
    return sum(map(ord, persona + question)) + 7919 * trial
