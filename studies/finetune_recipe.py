"""A recipe's data for the marker: whose answers are sampled, and what is made of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechinterp.model import Model
from studies.finetune_answers import Answer, own_answers
from studies.finetune_config import Recipe
from studies.finetune_data import TrainingExample, draw_negatives, examples
from studies.personas import Persona


def negative_personas(recipe: Recipe, pool: Sequence[str], source: str, seed: int) -> tuple[str, ...]:
    """Those that the recipe names, or drawn from the pool."""
    if recipe.negatives is not None:
        return recipe.negatives
    return draw_negatives(pool, source, recipe.n_negative_personas, seed)


def answers_for(
    model: Model,
    personas: Mapping[str, Persona],
    questions: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    n_draws: int | None = None,
    batch_size: int = 64,
) -> list[Answer]:
    """Own answers sampled as the recipe says; `n_draws` a question takes the place of the recipe's."""
    return own_answers(
        model,
        personas,
        questions,
        n_draws=recipe.n_draws if n_draws is None else n_draws,
        n_tokens=recipe.n_tokens,
        least=recipe.least_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=seed,
        batch_size=batch_size,
    )


def examples_for(
    tokenizer: Any, answers: Sequence[Answer], source: str, negatives: Sequence[str], recipe: Recipe
) -> list[TrainingExample]:
    """Positives of the source and negatives of the others, in the recipe's numbers."""
    return examples(
        tokenizer,
        answers,
        source,
        negatives,
        marker=recipe.marker,
        separator=recipe.separator,
        n_positives=recipe.n_positives,
        n_negatives=recipe.n_negatives,
        negative_slot=recipe.negative_slot,
    )
