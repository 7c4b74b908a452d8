"""What the locus study asks: on whose answers, at how many layers, how wide a knock-out."""

from typing import Literal

from pydantic import Field

from studies.zlt_attention_config import Config as AttentionConfig


class Config(AttentionConfig):
    """The answers are those of `records`, else collected as the attention study does.

    `n_read` positives and `n_read_negatives` are read, spread over questions. The marker's first piece is
    held against the id that ends a turn, or against what the base likes best at that row where nobody would
    end. `layer_step` thins the layers of the patching maps, and a knock-out covers `window` layers.
    """

    preflight: bool = False
    n_read: int = Field(20, ge=1)
    n_read_negatives: int = Field(10, ge=0)
    competitor: Literal["end_of_turn", "base_choice"] = "end_of_turn"
    n_control: int = Field(10, ge=1)
    layer_step: int = Field(1, ge=1)
    window: int = Field(5, ge=1)
    window_step: int = Field(1, ge=1)
    placebos: int = Field(2, ge=1)


def chosen_layers(config: Config, n_layers: int) -> list[int]:
    """Every `layer_step`-th layer, counted from the last, which is always there."""
    return list(range(n_layers - 1, -1, -config.layer_step))[::-1]
