"""From a path or a Hugging Face Hub id to a local folder; only the files bough reads are downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bough.core.errors import CheckpointError

TOKENIZER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
FILES = (
    *TOKENIZER_FILES,
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(path_or_id: str | os.PathLike[str], revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """A local folder as it is; a Hub id (``owner/name``) as the folder of its downloaded snapshot of these files.

    Raises :class:`CheckpointError` when it is neither, or the download fails.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path.resolve()
    name = str(path_or_id)
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is neither a folder with a checkpoint nor a Hub id such as owner/name")
    # Imported here: it is slow to import, and local folders do not need it.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is not a local folder, and could not be downloaded from the Hub: {error}"
        ) from error
