"""What the divergence study asks: whose responses, at which layers, and the leakage to be predicted."""

from pathlib import Path

from pydantic import Field, model_validator

from studies.leakage_config import Config as LeakageConfig
from studies.personas import Persona, wide_personas
from studies.targets import targets


class Config(LeakageConfig):
    """Every target answers `n_questions` questions, greedily unless `response_temperature` is set.

    Divergences are taken of each answer behind every target's prompt. Cosines are of centroids at `layers`
    (all, unless asked), centred on the targets and on the shipped 111 personas. `generations` is a file of
    texts, {persona: {question: [text]}}, to be taken instead of sampled answers. The assistant and its
    `n_nearest` by cosine are held out of what an adapter's specificity is seen on (methods 12.8).
    """

    response_tokens: int = Field(512, ge=1)
    response_temperature: float | None = Field(None, gt=0)
    response_top_p: float = Field(1.0, gt=0, le=1)
    n_responses: int = Field(1, ge=1)
    include_turn_end: bool = True
    generations: Path | None = None
    layers: tuple[int, ...] | None = None
    centre_on_wide: bool = True
    n_nearest: int = Field(2, ge=0)
    divergence_batch: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _responses(self) -> "Config":
        if self.response_temperature is None and self.n_responses > 1:
            raise ValueError(
                f"greedy answers are all the same; {self.n_responses} of them want a response_temperature"
            )
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers are given once each, not {list(self.layers)}")
        return self


def reference(config: Config) -> dict[str, Persona]:
    """The personas of the wider reference set, those of the study among them."""
    return {**wide_personas(), **targets(config)}
