"""bough: branches, and nothing but its public verbs."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workloads import Branching, OneStream, Particles, Prefill, Request, Serving, StepSearch

import bough
from bough.core import Backend, Branches, Draw, SampleSpec, Stop

from . import Contender, Outcome

ENDLESS = Stop(eos=False)


def load(folder: Path, precision: str, **options: Any) -> Backend:
    """The checkpoint, its weights in this precision."""
    return bough.load(folder, device="cpu", weights=precision, **options)


class Bough(Contender):
    """bough's engine. Every repetition has a prompt of its own, so that nothing of it is cached."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.lm = load(folder, precision)

    @staticmethod
    def version() -> str:
        return f"bough {bough.__version__}"

    def one_stream(self, work: OneStream) -> Outcome:
        root = self.lm.branch(work.prompt, seed=work.seed)
        started = time.perf_counter()
        leaf = self.lm.generate(root, max_tokens=work.tokens, stop=ENDLESS)[0]
        return Outcome(time.perf_counter() - started, len(leaf.appended))

    def branching(self, work: Branching) -> Outcome:
        root = self.lm.branch(work.prompt, seed=work.seed)
        started = time.perf_counter()
        leaves = self.lm.generate(root, n=work.branches, max_tokens=work.tokens, stop=ENDLESS)
        return Outcome(time.perf_counter() - started, sum(len(leaf.appended) for leaf in leaves))

    def step_search(self, work: StepSearch) -> Outcome:
        async def search() -> int:
            nodes, width, total = Branches([self.lm.branch(work.prompt, seed=work.seed)]), work.children, 0
            for _ in range(work.depth):
                parents = nodes.select(np.repeat(np.arange(len(nodes)), width))
                children = await parents.sample(max_tokens=work.step, stop=ENDLESS)
                total += sum(len(child.appended) for child in children)
                scored = await asyncio.gather(*(child.score([work.continuation]) for child in children))
                scores = np.array([logprobs[0].mean() for logprobs in scored])
                nodes, width = children.select(np.argsort(-scores, kind="stable")[: work.kept]), work.width
            return total

        started = time.perf_counter()
        total = bough.run(search())
        return Outcome(time.perf_counter() - started, total)

    def serving(self, work: Serving) -> Outcome:
        firsts: list[float] = []

        async def one(i: int, request: Request, started: float) -> int:
            await asyncio.sleep(max(0.0, started + request.arrival - time.perf_counter()))
            root = self.lm.branch(request.prompt, seed=work.seed + i)
            seen = False

            def on_token(*_: object) -> None:
                nonlocal seen
                if not seen:
                    seen = True
                    firsts.append(time.perf_counter() - started - request.arrival)

            spec = SampleSpec(max_tokens=request.tokens, stop=ENDLESS)
            [future] = self.lm.submit_sample([Draw(root, root.key + 1)], spec, on_token=on_token)
            return len((await future).appended)

        async def everyone() -> tuple[float, int]:
            started = time.perf_counter()
            counts = await asyncio.gather(*(one(i, request, started) for i, request in enumerate(work.requests)))
            return time.perf_counter() - started, sum(counts)

        seconds, produced = bough.run(everyone())
        return Outcome(seconds, produced, {"first_token": statistics.median(firsts)})

    def prefill(self, work: Prefill) -> Outcome:
        root = self.lm.branch(work.prompt, seed=work.seed)
        started = time.perf_counter()
        logprobs = self.lm.next_token(root)
        seconds = time.perf_counter() - started
        assert np.isfinite(logprobs).all()
        return Outcome(seconds, root.length)

    def particles(self, work: Particles) -> Outcome:
        async def advance() -> int:
            particles = Branches([self.lm.branch(work.prompt, seed=work.seed)] * work.particles)
            resamplings, total = work.resamplings(), 0
            for start in range(0, work.tokens, work.every):
                particles = await particles.sample(max_tokens=work.every, stop=ENDLESS)
                total += sum(len(particle.appended) for particle in particles)
                if start + work.every < work.tokens:
                    particles = particles.select(next(resamplings))
            return total

        started = time.perf_counter()
        total = bough.run(advance())
        return Outcome(time.perf_counter() - started, total)
