"""A llama-architecture GGUF file rewritten as a Hugging Face model directory: weights, config, tokenizer.

The weights are stored in fp32: a 4-bit block stands for `scale * code + offset`, which bf16 would round a
second time. Every other precision can be made from this file when it is loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

# GGUF's name of a tensor within a block -> transformers' name within a layer
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL_TOKEN = 3  # GGUF's token type of chat markup and other tokens that plain text must never become


def convert(gguf: Path, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer files of a llama GGUF into `folder`."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf)
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"{gguf.name} holds a {architecture!r} model; only the llama architecture is converted"
        )
    weights = folder / "model.safetensors"
    save_file(_tensors(reader), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private, and a cache may be shared
    _write_json(folder / "config.json", _config(reader))
    _write_json(folder / "generation_config.json", _special_ids(reader))
    _write_json(folder / "tokenizer.json", _tokenizer(reader))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(reader))


def _field(reader: "GGUFReader", key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF file has no field {key!r}, which the conversion needs")
    return field.contents()


def _tensors(reader: "GGUFReader") -> dict[str, "np.ndarray"]:
    import numpy as np
    from einops import rearrange
    from gguf.quants import dequantize

    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        local = tensor.name.split(".")[-2]
        if local in heads:
            # GGUF interleaves the two halves that a rotation pairs; transformers keeps each half together.
            weight = rearrange(
                weight,
                "(head pair half) d_model -> (head half pair) d_model",
                head=_field(reader, heads[local]),
                half=2,
            )
        weights[_name(tensor.name)] = np.ascontiguousarray(weight)
    return weights


def _name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk" and parts[-1] in IN_BLOCK:
        return f"model.layers.{parts[1]}.{IN_BLOCK[parts[-1]]}.weight"
    if parts[0] in OUTSIDE:
        return f"{OUTSIDE[parts[0]]}.weight"
    raise ValueError(f"the GGUF file has a tensor {name!r} that a llama model does not have")


def _special_ids(reader: "GGUFReader") -> dict[str, int]:
    gguf_names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: int(_field(reader, f"tokenizer.ggml.{gguf}_token_id")) for name, gguf in gguf_names.items()}


def _config(reader: "GGUFReader") -> dict[str, Any]:
    def number(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": number("rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": number("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": number("feed_forward_length"),
        "max_position_embeddings": number("context_length"),
        "mlp_bias": False,
        "num_attention_heads": number("attention.head_count"),
        "num_hidden_layers": number("block_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "rms_norm_eps": _shortest(number("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": number("rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "use_cache": True,
        "vocab_size": number("vocab_size"),
        **_special_ids(reader),
    }


def _shortest(value: float) -> float:
    """The shortest decimal of the same fp32 value: GGUF keeps 1e-5 in fp32, and JSON would show its error."""
    import numpy as np

    return float(str(np.float32(value)))


def _tokenizer(reader: "GGUFReader") -> dict[str, Any]:
    """A `tokenizer.json`: byte-level BPE after a split that makes each digit a token of its own."""
    if _field(reader, "tokenizer.ggml.pre") != "smollm":
        raise ValueError("only GGUF files with the 'smollm' pre-tokenizer are converted")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": token, **plain}
            for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            # The converter of transformers leaves the first step out; the model was trained with it.
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in _field(reader, "tokenizer.ggml.merges")],
        },
    }


def _tokenizer_config(reader: "GGUFReader") -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    ids = {**_special_ids(reader), "unk_token_id": int(_field(reader, "tokenizer.ggml.unknown_token_id"))}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": _field(reader, "tokenizer.chat_template"),
        **{name.removesuffix("_id"): tokens[id] for name, id in ids.items()},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
