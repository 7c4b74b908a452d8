"""Which model a study runs on: the same fields in every study's configuration."""

from typing import Any, Literal

from mechinterp.config import StudyConfig


class ModelConfig(StudyConfig):
    """`--set model=...`, `--set backend=...`: what `mechinterp.load` takes."""

    model: str = "smollm2-135m-instruct-q4"
    backend: Literal["transformers", "nnsight", "hooked_transformer", "transformer_bridge"] = "transformers"
    adapter: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    subfolder: str | None = None


def specs(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The models of a study with one: cells call it `model`."""
    return {
        "model": {
            "name": config.model,
            "backend": config.backend,
            "adapter": config.adapter,
            "dtype": config.dtype,
            "device": config.device,
            "revision": config.revision,
            "subfolder": config.subfolder,
        }
    }
