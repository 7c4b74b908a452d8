"""What prefix completion asks: which trained models, whose prompts, and where an answer is cut."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from studies.trained import TrainedConfig, check_known, trained


class Config(TrainedConfig):
    """`personas` are the sources, each with its trained models; `others` lend prompts and answers.

    `records` holds answers that exist: `positives_{source}.json`, `{source}/positives_{persona}.json` for
    answers of a source's model under another persona, or a finished run of this study or of zlt_attention.
    Answers that are not there are sampled, `n_trials` a question; the first `n_prefixes` usable ones of a
    question become prefixes. `source_answers="all"` takes a source's answers without its marker as well.
    An answer without a marker is cut where the end of the turn was sampled; `ending="separator"` puts the
    marker's blank line behind it, so that all four conditions go on from the same kind of slot.
    """

    others: tuple[str, ...] = Field(("assistant", "medical_doctor", "comedian"), min_length=1)
    records: Path | None = None
    n_trials: int = Field(6, ge=1)
    n_prefixes: int = Field(1, ge=1)
    max_tokens: int = Field(512, ge=1)
    source_answers: Literal["positives", "all"] = "positives"
    ending: Literal["as_written", "separator"] = "as_written"
    prefixes: Literal["ids", "text"] = "ids"
    allow_text_prefix: bool = False
    n_continuations: int = Field(5, ge=1)
    continuation_tokens: int = Field(30, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    base_control: bool = True
    batch_size: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _others_and_prefixes(self) -> "Config":
        check_known(self, self.others)
        for source in self.personas:
            if not others_of(self, source):
                raise ValueError(f"{source} is its own only other persona; name another one in `others`")
        if self.prefixes == "text" and not self.allow_text_prefix:
            raise ValueError(
                "text prefixes lose the white space that the marker is decided on (methods 8); use"
                ' prefixes = "ids", or set allow_text_prefix = true to reproduce the published artefact'
            )
        if self.prefixes == "text" and self.ending != "as_written":
            raise ValueError(
                'ending = "separator" puts ids behind an answer; use it with prefixes = "ids" only'
            )
        several = [p for p in self.personas if len(trained(self, p)) > 1]
        if several and self.records is not None and not is_run(self.records):
            raise ValueError(
                f"{self.records} cannot say which training run of {several[0]} wrote its answers; give a"
                " finished run, or one trained model a persona"
            )
        return self


def others_of(config: Config, source: str) -> tuple[str, ...]:
    """The other personas of a source: itself is left out."""
    return tuple(other for other in config.others if other != source)


def is_run(folder: Path) -> bool:
    """Whether a directory is a run of a study, rather than files of records."""
    return (folder / "manifest.json").is_file()
