"""How much a text is a role's: its log-probability under the role's prompt minus under the default one.

The text is a list of ids, the same under both prompts; nothing is sampled, so the difference is of the text
alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mechinterp.model import Model

ROWS = 8  # answers a pass: logits of every answer token over the whole vocabulary are held at once


def teacher_forced(
    model: Model, prompt: Int[Tensor, "position"], answers: Sequence[Int[Tensor, "_token"]]
) -> Float[Tensor, "answer token"]:
    """log p of each answer's ids after a prompt, in nats; NaN past an answer's end.

    The prompt runs once, and its keys and values serve every answer. Raises ValueError for an empty answer.
    """
    if not answers or not all(len(answer) for answer in answers):
        raise ValueError("an answer holds no ids, so it has no log-probability; leave it out")
    found = torch.full((len(answers), max(map(len, answers))), torch.nan)
    shared = None
    if len(prompt) > 1:
        shared = model.forward(prompt[None, :-1], logits_at=(), keep_cache=True).state
    for first in range(0, len(answers), ROWS):
        chosen = pad_sequence([answer.long() for answer in answers[first : first + ROWS]], batch_first=True)
        # The row before a token decides it. What is past a row's end comes after all that is read of the row.
        deciding = torch.cat([prompt[-1:].long().expand(len(chosen), 1), chosen[:, :-1]], 1)
        cache = None if shared is None else shared.select(torch.zeros(len(chosen), dtype=torch.long))
        logits = model.forward(deciding, cache=cache).logits
        assert logits is not None  # all of them were asked for
        scores = (
            logits.float().log_softmax(-1).gather(-1, chosen[..., None].to(logits.device)).squeeze(-1).cpu()
        )
        for row, answer in enumerate(answers[first : first + ROWS]):
            assert torch.equal(chosen[row, : len(answer)], answer.long())  # the same ids under every prompt
            found[first + row, : len(answer)] = scores[row, : len(answer)]
    return found
