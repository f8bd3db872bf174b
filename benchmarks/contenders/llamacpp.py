"""llama.cpp, through llama-cpp-python's low-level API.

Branches are sequences that share cells of one KV cache (`llama_memory_seq_cp`), so no prefix is computed twice.
Tokens are drawn in numpy for all rows at once, not by one sampler chain after the other.

Settings were chosen by measurement, and the same ones were the fastest in every workload: flash attention; physical
batches of 512; one buffer for all sequences (`kv_unified`), where forking is free and every query looks at every
cell, rather than one for each, where forking copies.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import llama_cpp as api
import numpy as np
from gguf_files import convert
from numpy.typing import ArrayLike
from workloads import Branching, OneStream, Particles, Prefill, Serving, StepSearch, Workload

from . import Contender, Outcome, mean_logprobs


@dataclass(frozen=True)
class Settings:
    """How a context is made; see the module."""

    unified: bool = True
    flash: bool = True
    ubatch: int = 512


SETTINGS = {letter: Settings() for letter in "abcdef"}


@api.llama_log_callback
def _silent(level: int, text: bytes, user_data: object) -> None: ...


class Context:
    """A llama.cpp context: sequences, and batches of tokens for them."""

    def __init__(
        self, model: object, cells: int, sequences: int, batch: int, threads: int, settings: Settings
    ) -> None:
        params = api.llama_context_default_params()
        streams = 1 if settings.unified else sequences
        params.n_ctx = streams * (-(-cells // 256) * 256)
        params.n_batch, params.n_ubatch = batch, min(settings.ubatch, batch)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.kv_unified, params.no_perf = settings.unified, True
        self.context = api.llama_init_from_model(model, params)
        if not self.context:
            raise MemoryError(f"llama.cpp made no context of {params.n_ctx} cells")
        self.memory = api.llama_get_memory(self.context)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        # One token has one sequence here, so that the arrays of a batch can be numpy's.
        self.tokens, self.positions, self.sequences = (np.zeros(batch, np.int32) for _ in range(3))
        self.counts, self.wanted = np.ones(batch, np.int32), np.zeros(batch, np.int8)
        self._pointers = self.sequences.ctypes.data + 4 * np.arange(batch, dtype=np.uint64)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self.counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(
                self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
            ),
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )  # fmt: skip

    def decode(
        self, tokens: ArrayLike, positions: ArrayLike, sequences: ArrayLike, wanted: ArrayLike = True
    ) -> np.ndarray:
        """One batch; the logits ``[n, V]`` float32 of the wanted places, valid until the next call."""
        ids = np.asarray(tokens)
        n = len(ids)
        self.tokens[:n], self.positions[:n] = ids, np.asarray(positions)
        self.sequences[:n], self.wanted[:n] = np.asarray(sequences), np.asarray(wanted)
        self._batch.n_tokens = n
        code = api.llama_decode(self.context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode of {n} tokens returned {code}")
        rows = int(np.count_nonzero(self.wanted[:n]))
        if not rows:
            return np.zeros((0, self.vocab), np.float32)
        return np.ctypeslib.as_array(api.llama_get_logits(self.context), (rows, self.vocab))

    def prefill(self, prompt: Sequence[int], sequence: int = 0, start: int = 0) -> np.ndarray:
        """The logits ``[1, V]`` at the end of a prompt, whose first ``start`` tokens are there already."""
        logits = np.zeros((0, self.vocab), np.float32)
        for begin in range(start, len(prompt), len(self.tokens)):
            piece = prompt[begin : begin + len(self.tokens)]
            wanted = np.zeros(len(piece), np.int8)
            wanted[-1] = begin + len(piece) == len(prompt)
            logits = self.decode(piece, np.arange(begin, begin + len(piece)), sequence, wanted)
        return logits

    def fork(self, source: int, target: int, end: int = -1) -> None:
        """Sequence ``target`` is ``source`` (its first ``end`` tokens) from now on."""
        api.llama_memory_seq_rm(self.memory, target, -1, -1)
        api.llama_memory_seq_cp(self.memory, source, target, -1, end)

    def cut(self, sequence: int, start: int = -1) -> None:
        """Forget a sequence from a position on, or all of it."""
        api.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def clear(self) -> None:
        api.llama_memory_clear(self.memory, False)

    def close(self) -> None:
        api.llama_free(self.context)


def draw(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A token of each row at temperature 1: int64 ``[n]``, by inverting the cumulative distribution."""
    weights = logits - logits.max(1, keepdims=True)
    np.exp(weights, out=weights)
    np.cumsum(weights, axis=1, out=weights)
    points = rng.random(len(weights), np.float32) * weights[:, -1]
    return np.array([row.searchsorted(point, "right") for row, point in zip(weights, points, strict=True)]).clip(
        max=logits.shape[1] - 1
    )


class LlamaCpp(Contender):
    """llama.cpp on a GGUF file made from the same checkpoint."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        api.llama_log_set(_silent, None)
        api.llama_backend_init()
        path = folder / f"{precision}.gguf"
        if not path.exists():
            convert(folder, precision, path)
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self.threads = threads
        self._contexts: dict[tuple[int, ...], Context] = {}
        self.settings = dict(SETTINGS)

    @staticmethod
    def version() -> str:
        return f"llama-cpp-python {version('llama-cpp-python')}"

    def context(self, work: Workload, cells: int, sequences: int, batch: int) -> Context:
        """A cleared context; one is kept, as a program that does one thing would."""
        settings = self.settings[work.letter]
        key = (cells, sequences, batch, hash(settings))
        if key not in self._contexts:
            for old in self._contexts.values():
                old.close()
            self._contexts = {
                key: Context(self.model, cells, sequences, batch, self.threads, settings)
            }  # fmt: skip
        self._contexts[key].clear()
        return self._contexts[key]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits ``[T, V]`` at every position."""
        context = Context(self.model, len(tokens), 1, len(tokens), self.threads, Settings())
        found = context.decode(tokens, np.arange(len(tokens)), 0).copy()
        context.close()
        return found

    def one_stream(self, work: OneStream) -> Outcome:
        context, rng = self.context(work, work.context, 1, 512), np.random.default_rng(work.seed)
        started = time.perf_counter()
        logits, drawn = context.prefill(work.prompt), []
        for position in range(work.prompt_tokens, work.context):
            drawn.append(int(draw(logits, rng)[0]))
            if len(drawn) < work.tokens:
                logits = context.decode([drawn[-1]], position, 0)
        return Outcome(time.perf_counter() - started, len(drawn))

    def _advance(
        self,
        context: Context,
        logits: np.ndarray,
        sequences: np.ndarray,
        start: int,
        steps: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Draw ``steps`` tokens for each sequence ``[n]`` from its logits ``[n, V]``; int64 ``[n, steps]``.

        The last token of each is not computed.
        """
        drawn = np.empty((len(sequences), steps), np.int64)
        for step in range(steps):
            drawn[:, step] = draw(logits, rng)
            if step + 1 < steps:
                logits = context.decode(drawn[:, step], start + step, sequences)
        return drawn

    def branching(self, work: Branching) -> Outcome:
        unified = self.settings["b"].unified
        cells = work.prompt_tokens + work.branches * work.tokens if unified else work.context
        context, rng = self.context(work, cells, work.branches, 1024), np.random.default_rng(work.seed)
        started = time.perf_counter()
        logits = context.prefill(work.prompt)
        for branch in range(1, work.branches):
            context.fork(0, branch)
        rows = np.broadcast_to(logits, (work.branches, context.vocab))
        drawn = self._advance(context, rows, np.arange(work.branches), work.prompt_tokens, work.tokens, rng)
        return Outcome(time.perf_counter() - started, drawn.size)

    def step_search(self, work: StepSearch) -> Outcome:
        children, kept, step = work.children, work.kept, work.step
        cells = work.prompt_tokens + kept * work.depth * step + children * (step + work.scored_tokens)
        if not self.settings["c"].unified:
            cells = work.context
        context, rng = self.context(work, cells, kept + children, 1024), np.random.default_rng(work.seed)
        target = np.array(work.continuation)
        total, started = 0, time.perf_counter()
        # Sequences 0 to kept - 1 are the nodes, the others their children.
        rows = np.broadcast_to(context.prefill(work.prompt), (children, context.vocab))
        parents, sequences = np.zeros(children, np.int64), kept + np.arange(children)
        for level in range(work.depth):
            start = work.prompt_tokens + level * step
            for parent, child in zip(parents.tolist(), sequences.tolist(), strict=True):
                context.fork(parent, child)
            drawn = self._advance(context, rows, sequences, start, step, rng)
            total += drawn.size
            tokens = np.concatenate([drawn[:, -1:], np.broadcast_to(target[:-1], (children, len(target) - 1))], 1)
            positions = start + step - 1 + np.arange(len(target))
            logits = context.decode(tokens.ravel(), np.tile(positions, children), np.repeat(sequences, len(target)))
            scores = mean_logprobs(logits.reshape(children, len(target), -1), target)
            best = np.argsort(-scores, kind="stable")[:kept]
            for node, child in enumerate(best.tolist()):
                context.cut(kept + child, start + step)
                context.fork(kept + child, node)
            for child in sequences.tolist():
                context.cut(child)
            parents = np.repeat(np.arange(kept), work.width)
            rows = np.repeat(logits[best * len(target)], work.width, 0)
        return Outcome(time.perf_counter() - started, total)

    def serving(self, work: Serving) -> Outcome:
        """Continuous batching: one token of each running request and a chunk of waiting prompts in each pass.

        A prompt begins as a copy of the longest prefix that it shares with any sequence, finished ones included.
        """
        requests, chunk = work.requests, 512
        cells = sum(len(request.prompt) + request.tokens for request in requests)
        context, rng = (
            self.context(work, cells, len(requests), chunk + len(requests)),
            np.random.default_rng(work.seed),
        )
        known = [list(request.prompt) for request in requests]
        computed, firsts = [0] * len(requests), [0.0] * len(requests)
        begun: list[int] = []
        active: list[int] = []
        started = time.perf_counter()
        arrived = done = 0
        while done < len(requests):
            now = time.perf_counter() - started
            while arrived < len(requests) and requests[arrived].arrival <= now:
                active.append(arrived)
                arrived += 1
            if not active:
                time.sleep(max(requests[arrived].arrival - now, 0))
                continue
            tokens: list[int] = []
            positions: list[int] = []
            sequences: list[int] = []
            wanted: list[bool] = []
            ends, room = [], chunk
            cached = list(computed)  # what a prompt can begin with: the pass that is being made up is not there yet
            for i in active:
                if computed[i] == 0 and not room:
                    continue
                if computed[i] == 0:
                    computed[i] = self._share(context, i, begun, known, cached)
                    begun.append(i)
                count = len(known[i]) - computed[i]
                if count > 1:
                    count = min(count, room)
                    room -= count
                span = range(computed[i], computed[i] + count)
                tokens += known[i][span.start : span.stop]
                positions += span
                sequences += [i] * count
                complete = span.stop == len(known[i]) and count > 0
                wanted += [complete and position == span.stop - 1 for position in span]
                computed[i] += count
                if complete:
                    ends.append(i)
            logits = context.decode(tokens, positions, sequences, wanted)
            if not ends:
                continue
            now = time.perf_counter() - started
            for i, token in zip(ends, draw(logits, rng).tolist(), strict=True):
                if len(known[i]) == len(requests[i].prompt):
                    firsts[i] = now - requests[i].arrival
                known[i].append(token)
                if len(known[i]) == len(requests[i].prompt) + requests[i].tokens:
                    active.remove(i)
                    done += 1
        seconds = time.perf_counter() - started
        produced = sum(len(ids) - len(request.prompt) for ids, request in zip(known, requests, strict=True))
        return Outcome(seconds, produced, {"first_token": float(np.median(firsts))})

    @staticmethod
    def _share(context: Context, i: int, begun: list[int], known: list[list[int]], cached: list[int]) -> int:
        """Begin sequence ``i`` as a copy of the longest prefix it shares with another; its length."""
        best, source = 0, -1
        for other in begun:
            limit = min(cached[other], len(known[i]) - 1)
            same = next((n for n in range(limit) if known[other][n] != known[i][n]), limit)
            if same > best:
                best, source = same, other
        if best:
            context.fork(source, i, best)
        return best

    def prefill(self, work: Prefill) -> Outcome:
        context = self.context(work, work.context, 1, 2048)
        started = time.perf_counter()
        logits = context.prefill(work.prompt)[0]
        peak = logits.max()
        logprobs = logits - (peak + np.log(np.exp(logits - peak).sum()))
        seconds = time.perf_counter() - started
        assert np.isfinite(logprobs).all()
        return Outcome(seconds, work.prompt_tokens)

    def particles(self, work: Particles) -> Outcome:
        unified = self.settings["f"].unified
        cells = work.prompt_tokens + work.particles * work.tokens if unified else work.context
        context, rng = self.context(work, cells, work.particles, 512), np.random.default_rng(work.seed)
        everyone, total = np.arange(work.particles), 0
        started = time.perf_counter()
        rows = np.broadcast_to(context.prefill(work.prompt), (work.particles, context.vocab))
        for particle in range(1, work.particles):
            context.fork(0, particle)
        resamplings = work.resamplings()
        for start in range(work.prompt_tokens, work.context, work.every):
            drawn = self._advance(context, rows, everyone, start, work.every, rng)
            total += drawn.size
            if start + work.every == work.context:
                break
            # A survivor stays where it is; its further copies replace those that have none. The last token, which
            # is not computed yet, goes with the copy.
            chosen = next(resamplings)
            survivors, copies = np.unique(chosen, return_counts=True)
            free = iter(np.setdiff1d(everyone, survivors).tolist())
            last = drawn[:, -1].copy()
            for survivor, count in zip(survivors.tolist(), copies.tolist(), strict=True):
                for _ in range(count - 1):
                    target = next(free)
                    context.fork(survivor, target)
                    last[target] = last[survivor]
            rows = context.decode(last, start + work.every - 1, everyone)
        return Outcome(time.perf_counter() - started, total)
