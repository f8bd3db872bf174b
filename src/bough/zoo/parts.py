"""Runs the parts of a long job over one process per core, each with one thread, and keeps what is finished.

Small models are bound by Python, so that two processes with one thread each do more than one with two.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch


def run_parts(work: Callable[..., Any], parts: Mapping[str, tuple[Any, ...]], folder: Path) -> dict[str, Any]:
    """``work(*arguments)``, as JSON, for every part; one whose file is in the folder already is read from it.

    ``work`` is a function that other processes can import, and the arguments are what can be pickled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.json" for name in parts}
    todo = [(work, arguments, files[name]) for name, arguments in parts.items() if not files[name].exists()]
    if len(todo) < len(parts):
        print(f"{len(parts) - len(todo)} of {len(parts)} parts are in {folder} already", flush=True)
    spawn = multiprocessing.get_context("spawn")  # a forked process may hang in torch's thread pool
    with ProcessPoolExecutor(os.cpu_count(), spawn, torch.set_num_threads, (1,)) as pool:
        try:
            finished = as_completed([pool.submit(_run_part, item) for item in todo])
            for done, future in enumerate(finished, start=1):
                print(f"{future.result()} ({done} of {len(todo)})", flush=True)
        except BaseException:  # say so now, not after the parts that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def _run_part(item: tuple[Callable[..., Any], tuple[Any, ...], Path]) -> str:
    work, arguments, file = item
    started = time.perf_counter()
    found = work(*arguments)
    scratch = file.with_suffix(".part")
    scratch.write_text(json.dumps(found, separators=(",", ":")))
    scratch.replace(file)
    return f"{file.stem} took {time.perf_counter() - started:.0f} s"
