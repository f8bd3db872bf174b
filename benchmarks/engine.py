"""bough's engine against what a user would take instead, and against what the machine allows.

    python benchmarks/engine.py                                   # everything; about an hour on 2 cores
    python benchmarks/engine.py --models nano --work a b c        # a part of it; replaces these parts of the results
    python benchmarks/engine.py --contenders bough llama.cpp --precisions int4
    python benchmarks/engine.py --resume                          # only what the results lack
    python benchmarks/engine.py --show                            # print the results, measure nothing

Workloads (prompts are random token ids, temperature is 1, end-of-text is ignored, rates count drawn tokens):

    a  one stream: 256 tokens after a prompt of 32
    b  branching: 64 branches of 64 tokens from one prompt of 1,024, prefill included
    c  step search: depth 12; 64 children of 12 tokens a level, scored by a fixed continuation of 8, the best 8 kept
    d  serving: 32 requests at random times, half with a shared prefix of 256; throughput, median time to first token
    e  prefill: the next-token distribution of 4,096 tokens; "torch" is the bare matrix products of it
    f  particles: 256 particles of 64 tokens from a prompt of 256, resampled every 16

and figures of bough alone, in bf16:

    g  cost per unique token, from 1 to 1,024 branches and from 128 to 16,384 tokens of prefix
    h  a step of 1 and of 64 rows, and the part of it outside the kernels
    i  forks                 j  loading a checkpoint against reading it              k  import and --help
    l  peak KV memory of (b) against what its unique tokens need

All contenders run the same weights with the same number of threads, each in a process of its own, one at a time, and
in turns: a repetition is one run of each, and ratios are taken within it. Everyone has the same work, with two
exceptions. On the largest model, depths and lengths are shorter, for everyone (`MODELS`). And where a contender would
take hours it does a smaller piece of the work, once (`PIECES`), that is chosen in its favour; the results say which.

The limit is the larger of two times: that of reading all bytes at the measured bandwidth, and that of doing all
operations at the measured rate of bf16 products; see `limits.py`. Results go to `benchmarks/results/engine.json`.
What it needs is in `benchmarks/requirements.txt`; a contender that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender, Outcome, cpu_of_others
from workloads import (
    WEIGHT_BYTES,
    WORKLOADS,
    Branching,
    OneStream,
    Particles,
    Serving,
    Shape,
    StepSearch,
    Workload,
)

RESULTS = Path(__file__).parent / "results" / "engine.json"
REFERENCE = "bough"
CONTEXT = 20480  # room for the longest figure
DISTURBED = 0.1  # cores that other programs kept busy during a run: from here on it is said
_FIGURES = "ghijkl"


@dataclass(frozen=True)
class Model:
    """A checkpoint to make, and the sizes of workloads that differ for it.

    Attributes:
        shape: entries of its ``config.json``; None for the embedded model.
        sizes: by workload, what differs from the defaults, for all contenders.
    """

    shape: dict[str, Any] | None = None
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)


MODELS = {
    "nano": Model(sizes={"d": {"gap": 0.02}}),
    "llama-150m": Model(
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 14,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
        },
        {"c": {"depth": 4}, "d": {"gap": 0.1}, "f": {"tokens": 32}},
    ),
    "llama-500m": Model(
        {
            "vocab_size": 32000,
            "hidden_size": 1280,
            "intermediate_size": 3584,
            "num_hidden_layers": 24,
            "num_attention_heads": 20,
            "num_key_value_heads": 5,
        },
        {"a": {"tokens": 128}, "c": {"depth": 2}, "d": {"gap": 0.3}, "f": {"tokens": 32}},
    ),
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# Fewer branches leave each branch's share of the cost as it is or make it less (transformers copies its cache at
# every token, and repeats its heads); the first level of a search has the shortest prefixes.
PIECES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("transformers", "llama-150m", "b"): {"branches": 32},
    ("transformers", "llama-150m", "c"): {"depth": 2},
    ("transformers", "llama-150m", "f"): {"particles": 64},
    ("transformers", "llama-500m", "b"): {"branches": 16, "tokens": 32},
    ("transformers", "llama-500m", "c"): {"depth": 1},
    ("transformers", "llama-500m", "f"): {"particles": 32},
    ("generate", "nano", "c"): {"depth": 2},
    ("generate", "llama-150m", "b"): {"branches": 16},
    ("generate", "llama-150m", "c"): {"depth": 1},
    ("generate", "llama-500m", "b"): {"branches": 4},
    ("generate", "llama-500m", "c"): {"depth": 1, "kept": 4},
    ("ctranslate2", "nano", "c"): {"depth": 2},
    ("ctranslate2", "llama-150m", "b"): {"branches": 16},
    ("ctranslate2", "llama-150m", "c"): {"depth": 1},
    ("ctranslate2", "llama-500m", "b"): {"branches": 4},
    ("ctranslate2", "llama-500m", "c"): {"depth": 1, "kept": 4},
}


def checkpoint(name: str, folder: Path) -> None:
    """Save the model, the embedded one or random weights in bf16, with room for the work."""
    import torch

    from bough.models import Decoder, load_decoder, save_decoder

    shape = MODELS[name].shape
    if shape is None:
        from bough import zoo

        embedded = load_decoder(zoo.path("bough/nano"), context=CONTEXT)
        model = Decoder.from_config({**embedded.config.raw, "max_position_embeddings": CONTEXT}).to(torch.bfloat16)
        model.load_state_dict(embedded.state_dict())
    else:
        model = Decoder.from_config({**LLAMA, **shape}).to(torch.bfloat16)
    save_decoder(model, folder)


# In a contender's process ------------------------------------------------------------------------------------------

_contender: Contender | None = None


def start(name: str, folder: Path, precision: str, threads: int) -> str:
    """Load the checkpoint in this process; what runs."""
    global _contender
    cls = CONTENDERS[name].load()
    _contender = cls(folder, precision, threads)
    return cls.version()


def perform(work: Workload) -> Outcome:
    """Do the work in this process."""
    assert _contender is not None
    return _contender.run(work)


def limit_of(work: Workload, config: dict[str, Any], precision: str, threads: int) -> dict[str, float]:
    """The machine's limit for the work, measured in this process."""
    from limits import limit

    return limit(work, Shape.of(config), precision, threads).to_dict()


def figure_of(letter: str, folder: Path | None, threads: int) -> dict[str, Any]:
    """A figure of bough alone, measured in this process."""
    from figures import figure

    return figure(letter, folder, threads)


# In the command's process ------------------------------------------------------------------------------------------


def process() -> ProcessPoolExecutor:
    """One process; its module is imported afresh."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def warm_up(work: Workload, piece: bool) -> Workload:
    """A short work of the same shapes, so that the first repetition does not pay for their first use."""
    work = replace(work, seed=10_000)
    if piece:  # for the slow, hardly any
        small = {"branches": 2, "particles": 2, "kept": 2, "width": 2, "step": 2, "depth": 1, "tokens": 2, "every": 1}
        return replace(work, **{name: size for name, size in small.items() if hasattr(work, name)})
    if isinstance(work, OneStream | Branching):
        return replace(work, tokens=min(4, work.tokens))
    if isinstance(work, StepSearch):
        return replace(work, depth=1, step=2)
    if isinstance(work, Particles):
        return replace(work, tokens=4, every=2)
    if isinstance(work, Serving):
        return replace(work, count=min(4, work.count))
    return work


def sizes(work: Workload) -> dict[str, Any]:
    """The work's numbers, without vocabulary and seed."""
    return {name: value for name, value in asdict(work).items() if name not in ("vocab", "seed")}


def rounded(value: Any) -> Any:
    """Floats at any depth to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


class Part:
    """One model, precision and workload: every contender's repetitions."""

    def __init__(self, model: str, precision: str, work: Workload) -> None:
        self.key = f"{model}/{precision}/{work.letter}"
        self.model, self.work = model, work
        self.rates: dict[str, list[float]] = {}
        self.contenders: dict[str, dict[str, Any]] = {}

    def work_for(self, name: str) -> tuple[Workload, dict[str, Any] | None]:
        """What this contender does, and how it differs from the others' if it does."""
        piece = PIECES.get((name, self.model, self.work.letter))
        if piece is None:
            return self.work, None
        smaller = {size: min(value, getattr(self.work, size)) for size, value in piece.items()}
        return replace(self.work, **smaller), smaller

    def add(self, name: str, work: Workload, outcome: Outcome, piece: dict[str, Any] | None) -> None:
        entry = self.contenders.setdefault(name, {"seconds": []})
        entry["seconds"].append(outcome.seconds)
        self.rates.setdefault(name, []).append(work.produced / outcome.seconds)
        for key, value in outcome.extra.items():
            entry.setdefault(key, []).append(value)
        if piece is not None:
            entry["piece"] = piece

    def result(self, limit: dict[str, float]) -> dict[str, Any]:
        for name, entry in self.contenders.items():
            entry["per_second"] = statistics.median(self.rates[name])
        ratios = {}
        for name, rates in self.rates.items():
            if name != REFERENCE and REFERENCE in self.rates:
                paired = [ours / theirs for ours, theirs in zip(self.rates[REFERENCE], rates, strict=False)]
                ratios[name] = {"median": statistics.median(paired), "min": min(paired), "max": max(paired)}
        return rounded(
            {
                "work": sizes(self.work),
                "limit": limit | {"per_second": self.work.produced / limit["seconds"]},
                "contenders": self.contenders,
                "ratios": ratios,
            }
        )


def measure_model(name: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """All parts of one model."""
    with ExitStack() as stack:
        if args.checkpoints is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = args.checkpoints / name
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with process() as maker:
                maker.submit(checkpoint, name, folder).result()
        config = json.loads((folder / "config.json").read_text())
        results["parameters"][name] = Shape.of(config).parameters
        say(f"{name}: {results['parameters'][name]:,} parameters")
        for precision in args.precisions:
            parts = []
            for letter in args.work:
                if letter in WORKLOADS:
                    work = WORKLOADS[letter](config["vocab_size"], **MODELS[name].sizes.get(letter, {}))
                    part = Part(name, precision, work)
                    if not (args.resume and part.key in results["parts"]):
                        parts.append(part)
            if parts:
                measure_precision(parts, precision, folder, config, args, results)
        if "bf16" in args.precisions:
            measure_figures([letter for letter in args.work if letter in _FIGURES], name, folder, args, results)


def measure_precision(
    parts: list[Part],
    precision: str,
    folder: Path,
    config: dict[str, Any],
    args: argparse.Namespace,
    results: dict[str, Any],
) -> None:
    """The parts that share a checkpoint and a precision; so each contender loads it once."""
    letters = {part.work.letter for part in parts}
    running: dict[str, ProcessPoolExecutor] = {}
    with ExitStack() as stack:
        for name in args.contenders:
            entry = CONTENDERS[name]
            if precision not in entry.precisions or not letters & set(entry.works):
                continue
            executor = stack.enter_context(process())
            try:
                what = executor.submit(start, name, folder, precision, args.threads).result()
            except Exception as error:
                say(f"  {parts[0].model} {precision}: {name} is left out: {error}")
                continue
            results["machine"]["contenders"][name] = what
            running[name] = executor
        if not running:
            return
        for part in parts:
            measure_part(part, running, args)
            if not part.contenders:
                continue
            with process() as measurer:
                limit = measurer.submit(limit_of, part.work, config, precision, args.threads).result()
            results["parts"][part.key] = part.result(limit)
            save(results, args.out)


def measure_part(part: Part, running: dict[str, ProcessPoolExecutor], args: argparse.Namespace) -> None:
    """Repetitions in turns; a contender that fails is named and left out of the rest of this part."""
    names = [name for name in running if part.work.letter in CONTENDERS[name].works]
    for repetition in range(-1, args.repetitions):  # the first warms up
        # Each repetition begins with another contender, so that none always comes first or last.
        turn = max(repetition, 0) % max(len(names), 1)
        for name in [*names[turn:], *names[:turn]]:
            work, piece = part.work_for(name)
            if piece is not None and repetition > 0:
                continue
            todo = replace(work, seed=repetition + 1) if repetition >= 0 else warm_up(work, piece is not None)
            try:
                outcome = run_quietly(running[name], todo, args.wait if repetition >= 0 else 0.0)
            except Exception as error:
                say(f"  {part.key}: {name} failed: {error!r}"[:300])
                names.remove(name)
                continue
            if repetition >= 0:
                part.add(name, work, outcome, piece)
                extra = (
                    f", first token {outcome.extra['first_token']:.3g} s" if "first_token" in outcome.extra else ""
                )
                if outcome.extra["others"] > DISTURBED:
                    extra += f", disturbed: other programs kept {outcome.extra['others']:.2g} cores busy"
                note = f", piece {piece}" if piece else ""
                say(
                    f"  {part.key} {repetition + 1}/{args.repetitions} {name}: {outcome.seconds:.3g} s, "
                    f"{work.produced / outcome.seconds:,.4g} tokens/s{extra}{note}"
                )


def run_quietly(executor: ProcessPoolExecutor, work: Workload, wait: float) -> Outcome:
    """One run; with patience, one that other programs do not disturb, if that can be had in three attempts."""
    for attempt in range(3):
        end = time.perf_counter() + wait
        while time.perf_counter() < end:
            busy = cpu_of_others()
            time.sleep(0.5)
            if cpu_of_others() - busy < 0.5 * DISTURBED:
                break
        # A run that is disturbed is repeated with a prompt of its own, of which nothing is cached.
        outcome = executor.submit(perform, replace(work, seed=work.seed + 1000 * attempt)).result()
        if not wait or outcome.extra["others"] <= DISTURBED:
            break
    return outcome


def measure_figures(
    letters: list[str], model: str, folder: Path, args: argparse.Namespace, results: dict[str, Any]
) -> None:
    """The figures that are for this model, or, with the first model, for none."""
    from figures import FIGURES

    for letter in letters:
        title, _, models = FIGURES[letter]
        if models and model not in models or not models and model != args.models[0]:
            continue
        key = f"{model}/{letter}" if models else letter
        if args.resume and key in results["figures"]:
            continue
        with process() as alone:
            try:
                found = alone.submit(figure_of, letter, folder if models else None, args.threads).result()
            except Exception as error:
                say(f"  {key}: {title} failed: {error!r}"[:300])
                continue
        results["figures"][key] = rounded(found)
        say(f"  {key} {title}: {json.dumps(results['figures'][key])}")
        save(results, args.out)


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results whole, so that an interrupted run leaves the parts before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(path)


def machine(threads: int) -> dict[str, Any]:
    """What the results were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = set(fields.get("flags", "").split())
    versions = {}
    for package in ("torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "family/model": f"{fields.get('cpu family')}/{fields.get('model')}",
        "vector": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
        "contenders": {},
    }


def show(results: dict[str, Any]) -> None:
    """The results as a table."""
    titles = f"{'work':4} {'model':11} {'':5} {'contender':13} {'tokens/s':>10} {'of limit':>9}"
    print(f"\n{titles}  bough/contender (min-max)")
    for key in sorted(results["parts"], key=lambda key: (key.split("/")[2], key)):
        model, precision, letter = key.split("/")
        part = results["parts"][key]
        for name, entry in part["contenders"].items():
            ratio = part["ratios"].get(name)
            compared = f"{ratio['median']:6.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else ""
            notes = [f"first token {statistics.median(entry['first_token']):.3g} s"] if "first_token" in entry else []
            notes += [f"piece {entry['piece']}"] if "piece" in entry else []
            notes += ["disturbed"] if max(entry["others"]) > DISTURBED else []
            share = entry["per_second"] / part["limit"]["per_second"]
            print(
                f"{letter:4} {model:11} {precision:5} {name:13} {entry['per_second']:10,.4g} {share:9.1%}  "
                f"{compared:22} {'; '.join(notes)}".rstrip()
            )
    for key, found in sorted(results["figures"].items()):
        print(f"{key}: {json.dumps(found)}")


def main() -> None:
    """Measure, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    letters = [*WORKLOADS, *_FIGURES]
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL",
                        help=f"of {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--precisions", nargs="+", default=list(WEIGHT_BYTES), choices=list(WEIGHT_BYTES),
                        metavar="P", help=f"of the weights: {', '.join(WEIGHT_BYTES)}")  # fmt: skip
    parser.add_argument("--work", nargs="+", default=letters, choices=letters, metavar="LETTER",
                        help="workloads and figures, by letter")  # fmt: skip
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME",
                        help="; ".join(f"{name}: {entry.about}" for name, entry in CONTENDERS.items()))  # fmt: skip
    parser.add_argument("--repetitions", type=int, default=3, help="of each workload (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of every contender (default 2)")
    parser.add_argument("--checkpoints", type=Path, help="keep the checkpoints here instead of making them each time")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the results (default benchmarks/results/engine.json)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="before each run, wait at most so long for other programs to leave the processor, and repeat a run "
        "that they disturb (default 0)",
    )
    parser.add_argument("--resume", action="store_true", help="leave out the parts that the results have already")
    parser.add_argument("--show", action="store_true", help="print the results and measure nothing")
    args = parser.parse_args()
    if args.repetitions < 1 or args.threads < 1:
        parser.error("--repetitions and --threads must be at least 1")
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if "parts" not in results:  # none yet
        results = {"machine": {"contenders": {}}, "parameters": {}, "parts": {}, "figures": {}}
    if not args.show:
        for name in list(args.contenders):
            if missing := CONTENDERS[name].missing:
                say(f"{name} is left out: install {', '.join(missing)} (see benchmarks/requirements.txt)")
                args.contenders.remove(name)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # inherited by every contender's process
        known = results["machine"]["contenders"]
        results["machine"] = machine(args.threads)
        results["machine"]["contenders"] = known
        started = time.perf_counter()
        for name in args.models:
            measure_model(name, args, results)
        save(results, args.out)
        say(f"{(time.perf_counter() - started) / 60:.0f} minutes")
    show(results)


if __name__ == "__main__":
    main()
