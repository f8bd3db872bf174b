"""``bough list``: the gallery of techniques, the tasks and the embedded models."""

from __future__ import annotations

import inspect
import json
from dataclasses import is_dataclass
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bough.cli.common import JsonOption, out, print_json, table

KINDS = ("techniques", "tasks", "models", "rewards")


def gallery(
    name: Annotated[
        str | None, typer.Argument(metavar="[TECHNIQUE]", help="Show this one with its parameters.")
    ] = None,
    what: Annotated[str, typer.Option(help="techniques, tasks, models, rewards or all.")] = "techniques",
    json: JsonOption = False,
) -> None:
    """The gallery: every technique, its paper, what it promises and what it needs.

    Exact techniques give the very tokens of plain decoding, unbiased ones its distribution, approximate ones
    another distribution on purpose. How far that is from plain decoding's was measured on a language of 121 texts, as
    total variation between 0 and 1 (studies/divergence.py). What one needs is a capability of the model, or a reward.

    Examples:

        bough list
        bough list astar            one technique, with its parameters and their defaults
        bough list --what all       the tasks, embedded models and rewards too
    """
    from bough.core import InvalidInput

    if what not in (*KINDS, "all"):
        raise InvalidInput(f"--what {what!r} is not one of {', '.join(KINDS)}, all")
    if name is not None:
        _one(name, json)
        return
    kinds = KINDS if what == "all" else (what,)
    found = {kind: _READERS[kind]() for kind in kinds}
    if json:
        print_json(found if what == "all" else found[what])
        return
    for kind, rows in found.items():
        out.print(f"[bold]{kind}[/]")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="cyan")
        for row in rows:
            grid.add_row(row["name"], f"{escape(row['summary'])}\n[dim]{escape(_facts(kind, row))}[/]")
        out.print(grid)
        out.print()


def _facts(kind: str, row: dict[str, Any]) -> str:
    """What there is to know of an entry beside its summary."""
    if kind == "techniques":
        far = "" if row["divergence"] is None else f" ({row['divergence']:.2f} from plain decoding)"
        return (
            f"{row['family']} | {row['paper']} | {row['promise']}{far} | needs {', '.join(row['needs']) or 'nothing'}"
        )
    if kind == "tasks":
        return f"levels {', '.join(map(str, row['levels']))}; default {row['default_level']}"
    return str(row["size"]) if kind == "models" else f"--reward {row['name']}"


def _techniques() -> list[dict[str, Any]]:
    from bough.cli.params import register_all

    measured = _divergences()
    return [
        {
            "name": info.name,
            "family": info.family,
            "paper": info.paper,
            "promise": info.promise.name.lower(),
            "needs": [capability.name.lower() for capability in sorted(info.requires, key=lambda c: c.name)]
            + ["reward"] * info.needs_reward,
            "divergence": measured.get(info.name),
            "summary": info.summary.replace("``", ""),
        }
        for info in register_all().values()
    ]


def _divergences() -> dict[str, float]:
    """Total variation from plain decoding, by technique (`studies/divergence.py`)."""
    found = json.loads((files("bough.search") / "divergence.json").read_text())
    distances: dict[str, float] = found["from plain decoding"]
    return distances


def _tasks() -> list[dict[str, Any]]:
    from bough.tasks import TASKS

    return [
        {
            "name": task.name,
            "levels": list(task.levels),
            "default_level": task.default_level,
            "summary": _first_sentence(inspect.getmodule(type(task))),
            "example": task.problem("test", 0).prompt.strip(),
        }
        for task in TASKS.values()
    ]


def _models() -> list[dict[str, Any]]:
    from bough import zoo

    return [
        {
            "name": name,
            "size": f"{sum(file.stat().st_size for file in zoo.path(name).glob('*')) / 1e6:.1f} MB",
            "summary": summary,
        }
        for name, summary in zoo.MODELS.items()
    ]


def _rewards() -> list[dict[str, Any]]:
    from bough.rewards import NAMED

    return [{"name": name, "summary": _first_sentence(inspect.getmodule(made))} for name, made in NAMED.items()]


_READERS = {"techniques": _techniques, "tasks": _tasks, "models": _models, "rewards": _rewards}


def _first_sentence(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")


def _one(name: str, json: bool) -> None:
    """A technique with its documentation and its parameters."""
    from bough.cli.params import parameters, register_all
    from bough.core import get_technique

    register_all()
    info = get_technique(name)
    about = next(row for row in _techniques() if row["name"] == name)
    fields = parameters(info.cls) if is_dataclass(info.cls) else []
    params = [{"name": field.name, "type": str(field.type), "default": field.default} for field in fields]
    documentation = inspect.getdoc(info.cls) or ""
    if json:
        print_json({**about, "documentation": documentation, "parameters": params})
        return
    out.print(f"[bold]{name}[/]  ({about['family']}, {about['paper']}, {about['promise']})")
    out.print(f"needs {', '.join(about['needs']) or 'nothing'}\n")
    out.print(escape(documentation) + "\n")
    made = table("parameters", "name", "type", "default", left=3)
    for param in params:
        made.add_row(*(escape(str(param[column])) for column in ("name", "type", "default")))
    out.print(made)
