"""The embedded models: where they lie, and the recipe that makes them (`python -m bough.zoo`)."""

from __future__ import annotations

from pathlib import Path

from bough.core.errors import InvalidInput

MODELS = {
    "bough/nano": "4.9 M parameters; solves bough's four tasks in steps, and errs often enough to be worth helping",
    "bough/nano-draft": "1 M parameters, with nano's tokenizer and data; drafts tokens for it",
    "bough/nano-think": "nano, trained to think aloud before it answers; with a probe for ending its thoughts",
    "bough/nano-eval": "bough/nano trained to judge its own solutions, finished or not, and to write as before",
    "bough/nano-prm": "a process reward model for bough/nano: how likely each step leaves the solution right",
}


def path(name: str) -> Path:
    """The folder of an embedded model, in Hugging Face format.

    Raises InvalidInput, naming the models there are, for any other name.
    """
    if name not in MODELS:
        raise InvalidInput(f"there is no embedded model {name!r}: choose from {', '.join(MODELS)}")
    return Path(__file__).parent / name.removeprefix("bough/")


__all__ = ["MODELS", "path"]
