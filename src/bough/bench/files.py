"""The files that a bench leaves beside its results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from bough.bench.evaluate import Arm
from bough.bench.overview import Overview, overview
from bough.bench.report import PromptOf, report
from bough.bench.results import Record
from bough.bench.summary import write_whole


def write_summary(
    records: Sequence[Record],
    folder: Path,
    arms: Sequence[Arm] = (),
    baseline: str | None = None,
    prompt_of: PromptOf = lambda cell, index: None,
) -> tuple[Overview, list[Path]]:
    """Write ``summary.csv`` (one line per cell), ``summary.json`` (everything) and ``report.html`` (to look at).

    Args:
        prompt_of: the prompt of a problem of a cell's task, for the report.

    Returns:
        What the records say, and the files.

    Raises:
        OSError: a file could not be written; an older one is still whole.
    """
    found = overview(records, arms, baseline)
    whole = found.to_dict()
    table = io.StringIO()
    if whole["cells"]:
        writer = csv.DictWriter(
            table, list({name: None for row in whole["cells"] for name in row}), lineterminator="\n"
        )
        writer.writeheader()
        for row in whole["cells"]:
            plain = {name: json.dumps(row[name]) for name in ("params", "budget", "stop") if name in row}
            writer.writerow({**row, **plain, "pareto": " ".join(row["pareto"])})
    contents = {
        "summary.csv": table.getvalue(),
        "summary.json": json.dumps(whole, indent=1, ensure_ascii=False) + "\n",
        "report.html": report(found, prompt_of),
    }
    return found, [
        write_whole(folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        for name, text in contents.items()
    ]
