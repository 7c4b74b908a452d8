"""What the command line prints: results on standard output, talk on standard error."""

import logging


def talk() -> None:
    """What the library logs (downloads, conversions, notes) goes to stderr while a command runs."""
    logger = logging.getLogger("mechinterp")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def say(text: str) -> None:
    """Prints text that may hold model output or a user's names."""
    print(printable(text))


def printable(text: str) -> str:
    """Text without control characters, lest a terminal obey them."""
    return "".join(c for c in text if c.isprintable() or c == "\n")
