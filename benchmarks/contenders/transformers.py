"""transformers: its caches used by hand where that pays, and `generate` as it stands."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from workloads import Branching, OneStream, Particles, Prefill, Serving, StepSearch

from . import Contender, Outcome


class _Model(Contender):
    """The checkpoint in transformers, with its default attention for CPUs."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None

    @staticmethod
    def version() -> str:
        return f"transformers {transformers.__version__}"

    def generate(self, ids: Tensor, tokens: int, **options: Any) -> Tensor:
        """Continuations ``[n, tokens]``, temperature 1."""
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
                **options,
            )
        return out[:, ids.shape[1] :]


class Transformers(_Model):
    """transformers with its caches reused: the prompt computed once, repeated, selected, cut."""

    def forward(self, ids: Tensor, cache: DynamicCache, keep: int = 1) -> Tensor:
        """Logits ``[n, keep, V]`` float32 of the last places."""
        with torch.inference_mode():
            return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits.float()

    @staticmethod
    def draw(logits: Tensor) -> Tensor:
        """A token of each row ``[n, V]`` at temperature 1: int64 ``[n, 1]``."""
        return torch.multinomial(logits.softmax(-1), 1)

    def _advance(self, cache: DynamicCache, logits: Tensor, steps: int) -> Tensor:
        """Draw ``steps`` tokens for each row: int64 ``[n, steps]``. The last one is not computed."""
        drawn = [self.draw(logits)]
        for _ in range(steps - 1):
            drawn.append(self.draw(self.forward(drawn[-1], cache)[:, -1]))
        return torch.cat(drawn, 1)

    def one_stream(self, work: OneStream) -> Outcome:
        torch.manual_seed(work.seed)
        ids = torch.tensor([work.prompt])
        started = time.perf_counter()
        drawn = self.generate(ids, work.tokens)
        return Outcome(time.perf_counter() - started, drawn.numel())

    def branching(self, work: Branching) -> Outcome:
        torch.manual_seed(work.seed)
        ids, cache = torch.tensor([work.prompt]), DynamicCache()
        started = time.perf_counter()
        self.forward(ids[:, :-1], cache)
        cache.batch_repeat_interleave(work.branches)
        drawn = self.generate(ids.expand(work.branches, -1), work.tokens, past_key_values=cache)
        return Outcome(time.perf_counter() - started, drawn.numel())

    def step_search(self, work: StepSearch) -> Outcome:
        torch.manual_seed(work.seed)
        target, cache, total = torch.tensor(work.continuation), DynamicCache(), 0
        started = time.perf_counter()
        logits = self.forward(torch.tensor([work.prompt]), cache)[:, -1]
        repeats = work.children
        for _ in range(work.depth):
            cache.batch_repeat_interleave(repeats)
            drawn = self._advance(cache, logits.repeat_interleave(repeats, 0), work.step)
            total += drawn.numel()
            ids = torch.cat([drawn[:, -1:], target[:-1].expand(len(drawn), -1)], 1)
            ends = self.forward(ids, cache, len(target))
            scores = ends.log_softmax(-1).gather(2, target.expand(len(drawn), -1)[..., None]).mean((1, 2))
            best = scores.topk(work.kept).indices
            cache.crop(-(len(target) - 1))
            cache.batch_select_indices(best)
            logits, repeats = ends[best, 0], work.width
        return Outcome(time.perf_counter() - started, total)

    def serving(self, work: Serving) -> Outcome:
        """`ContinuousBatchingManager`; pages of 256 tokens, so that the shared prefix is one."""
        options = transformers.GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=work.most, eos_token_id=-1, pad_token_id=0
        )
        pages = sum(-(-(len(request.prompt) + request.tokens) // 256) + 1 for request in work.requests)
        batching = transformers.ContinuousBatchingConfig(
            page_size=256, num_blocks=pages, max_batch_tokens=512, seed=work.seed
        )
        manager = self.model.init_continuous_batching(options, batching)
        manager.start()
        arrivals: dict[str, float] = {}
        started = time.perf_counter()

        def submit() -> None:
            for i, request in enumerate(work.requests):
                time.sleep(max(0.0, started + request.arrival - time.perf_counter()))
                arrivals[str(i)] = started + request.arrival
                manager.add_request(
                    request.prompt,
                    request_id=str(i),
                    max_new_tokens=request.tokens,
                    record_timestamps=True,
                    eos_token_id=-1,
                )

        submitter = threading.Thread(target=submit)
        submitter.start()
        firsts: list[float] = []
        produced = 0
        try:
            while len(firsts) < work.count:
                result = manager.get_result(timeout=1)
                if result is None:
                    if submitter.is_alive() or manager.is_running():
                        continue
                    raise RuntimeError("continuous batching ended before its requests")
                if result.error is not None:
                    raise RuntimeError(result.error)
                if result.is_finished():
                    firsts.append(result.timestamps[0] - arrivals[result.request_id])
                    produced += len(result.generated_tokens)
            seconds = time.perf_counter() - started
        finally:
            submitter.join()
            manager.stop(block=True)
            manager.destroy()
        return Outcome(seconds, produced, {"first_token": statistics.median(firsts)})

    def prefill(self, work: Prefill) -> Outcome:
        ids = torch.tensor([work.prompt])
        started = time.perf_counter()
        logprobs = self.forward(ids, DynamicCache())[:, -1].log_softmax(-1)
        seconds = time.perf_counter() - started
        assert torch.isfinite(logprobs).all()
        return Outcome(seconds, work.prompt_tokens)

    def particles(self, work: Particles) -> Outcome:
        torch.manual_seed(work.seed)
        cache, total = DynamicCache(), 0
        started = time.perf_counter()
        logits = self.forward(torch.tensor([work.prompt]), cache)[:, -1].expand(work.particles, -1)
        cache.batch_repeat_interleave(work.particles)
        resamplings = work.resamplings()
        for start in range(0, work.tokens, work.every):
            drawn = self._advance(cache, logits, work.every)
            total += drawn.numel()
            if start + work.every < work.tokens:
                chosen = torch.from_numpy(next(resamplings).astype(np.int64))
                cache.batch_select_indices(chosen)
                logits = self.forward(drawn[chosen, -1:], cache)[:, -1]
        return Outcome(time.perf_counter() - started, total)


class Generate(_Model):
    """`generate` with `num_return_sequences`, whole prefixes submitted again at every step."""

    def branching(self, work: Branching) -> Outcome:
        torch.manual_seed(work.seed)
        ids = torch.tensor([work.prompt])
        started = time.perf_counter()
        drawn = self.generate(ids, work.tokens, num_return_sequences=work.branches)
        return Outcome(time.perf_counter() - started, drawn.numel())

    def step_search(self, work: StepSearch) -> Outcome:
        torch.manual_seed(work.seed)
        nodes, target, total = torch.tensor([work.prompt]), torch.tensor(work.continuation), 0
        started = time.perf_counter()
        for _ in range(work.depth):
            width = work.children // len(nodes)
            drawn = self.generate(nodes, work.step, num_return_sequences=width)
            total += drawn.numel()
            children = torch.cat([nodes.repeat_interleave(width, 0), drawn], 1)
            ids = torch.cat([children, target.expand(len(children), -1)], 1)
            with torch.inference_mode():
                ends = self.model(ids, logits_to_keep=len(target) + 1).logits[:, :-1].float()
            scores = ends.log_softmax(-1).gather(2, target.expand(len(children), -1)[..., None]).mean((1, 2))
            nodes = children[scores.topk(work.kept).indices]
        return Outcome(time.perf_counter() - started, total)
