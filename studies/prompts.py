"""A question to a persona, as ids with their regions."""

from mechinterp.chat import Prompt, plain, render
from mechinterp.model import Model
from studies.personas import Persona


def prompt_of(model: Model, persona: Persona, question: str, *, chat: bool = True) -> Prompt:
    """The persona as system prompt; models without a system role get it before the question.

    Without `chat` it is text of one region: the instruction, a blank line, the question.
    """
    told = persona.system_prompt
    if not chat:
        return plain(model.tokenizer, "\n\n".join([*([told] if told else []), question, ""]))
    system = [{"role": "system", "content": told}] if told else []
    messages = [*system, {"role": "user", "content": question}]
    try:
        return render(model.tokenizer, messages)
    except ValueError as error:
        if "prepend_user" not in str(error):
            raise
        return render(model.tokenizer, messages, system_role="prepend_user")
