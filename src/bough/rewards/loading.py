"""Which process reward a checkpoint is, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bough.core import Backend, InvalidInput, UnsupportedError

from .foreseeing import ForeseeingReward
from .formats import ChatTurns, StepEnd, StepForesee, StepFormat, StepLabel, StepReject, StepTag, single_token
from .process import ProcessReward
from .rejection import RejectionReward

FORMATS: dict[str, type[Any]] = {
    "step-end": StepEnd,
    "step-tag": StepTag,
    "chat-turns": ChatTurns,
    "step-label": StepLabel,
    "step-reject": StepReject,
    "step-foresee": StepForesee,
}
_KINDS: dict[type[Any], type[ProcessReward]] = {StepReject: RejectionReward, StepForesee: ForeseeingReward}


def from_backend(backend: Backend, config: Mapping[str, Any], **overrides: Any) -> ProcessReward:
    """A process reward from a backend and its checkpoint's ``config.json``.

    The format follows from the architecture (``...ForTokenClassification``, ``...ForProcessRewardModel``), or from
    the settings under the config's ``process_reward`` key, or from the overrides, which come first.

    Args:
        backend: runs the reward model.
        config: its ``config.json``.
        overrides: ``format`` ("step-end", "step-tag", "chat-turns", "step-label", "step-reject" or "step-foresee",
            see `bough.rewards.formats`) with that format's settings (``good``, ``bad``, ``label``, ``system``,
            ``reject``, ``offset``, ``query``, and ``step_tag`` for its ``tag``), and `ProcessReward`'s
            ``aggregate``, ``question`` and ``memory``. Without ``format``, a ``query`` means "step-foresee", a
            ``reject`` alone "step-reject", a ``step_tag`` that is only whitespace is one that ends a step anyway,
            and any other is inserted after each step.

    Raises:
        UnsupportedError: the checkpoint does not say how it is asked, and neither do the overrides.
        InvalidInput: an unknown format or setting.
    """
    settings = {**config.get("process_reward", {}), **overrides}
    options = {name: settings.pop(name) for name in ("aggregate", "question", "memory") if name in settings}
    if "step_tag" in settings:
        settings["tag"] = settings.pop("step_tag")
    name = settings.pop("format", None) or _format_name(backend, config, settings)
    if name not in FORMATS:
        raise InvalidInput(f"format={name!r} is not one of {', '.join(FORMATS)}")
    known = {field.name for field in fields(FORMATS[name])}
    if unknown := sorted(set(settings) - known):
        raise InvalidInput(f"format {name!r} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    format: StepFormat = FORMATS[name](**settings)
    reward = _KINDS.get(type(format), ProcessReward)(backend, format, **options)
    # What the format needs of the tokenizer had better be missed now than after the first step.
    texts = [getattr(format, name, None) for name in ("tag", "good", "bad", "reject", "query")]
    for text in texts:
        if text is not None:
            assert backend.tokenizer is not None
            single_token(backend.tokenizer, text)
    return reward


def _format_name(backend: Backend, config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    architecture = next(iter(config.get("architectures") or ()), "")
    if architecture.endswith(("ForTokenClassification", "ForProcessRewardModel")):
        return "step-label"
    if "query" in settings:
        return "step-foresee"
    if "reject" in settings:
        return "step-reject"
    tag = settings.get("tag")
    if tag is None:
        raise UnsupportedError(
            f"{backend.name} ({architecture or 'no architecture'}) does not say how a process reward is read from "
            "it: its config.json has no process_reward key. Give step_tag='ки' for Math-Shepherd's format, "
            "format='chat-turns' for RLHFlow's, or step_tag='\\n' where the score stands at the end of a line"
        )
    return "step-end" if not str(tag).strip() else "step-tag"
