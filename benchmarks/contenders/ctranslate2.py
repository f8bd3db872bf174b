"""CTranslate2 on the same checkpoint. On CPUs it computes in int8 or float32, not in bf16.

Its interface takes tokens as strings and keeps no caches between calls but that of one static prompt, so prefixes are
submitted again at every step of a search.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
import torch
import transformers
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from workloads import Branching, OneStream, Prefill, StepSearch

from . import Contender, Outcome


def with_ids_as_tokens(folder: Path, vocab: int, target: Path) -> Path:
    """The checkpoint in ``target``, with a tokenizer whose tokens are the ids themselves; the converter needs one."""
    target.mkdir()
    for file in (folder / "config.json", *folder.glob("*.safetensors")):
        (target / file.name).symlink_to(file.resolve())
    words = WordLevel({str(i): i for i in range(vocab)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="0", eos_token="0", unk_token="0"
    )
    tokenizer.save_pretrained(target)
    return target


class CTranslate2(Contender):
    """CTranslate2's generator."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
        target = folder / f"ctranslate2-{precision}"
        if not target.exists():
            with tempfile.TemporaryDirectory() as scratch:
                source = with_ids_as_tokens(folder, self.vocab, Path(scratch) / "checkpoint")
                TransformersConverter(str(source)).convert(str(target), quantization=precision)
        self.generator = ctranslate2.Generator(
            str(target), compute_type=precision, inter_threads=1, intra_threads=threads
        )

    @staticmethod
    def version() -> str:
        return f"ctranslate2 {ctranslate2.__version__}"

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, each: int) -> list[list[int]]:
        """``each`` continuations of every prompt."""
        found = self.generator.generate_batch(
            [list(map(str, prompt)) for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            num_hypotheses=each,
            sampling_topk=0,
            include_prompt_in_result=False,
        )
        return [ids for result in found for ids in result.sequences_ids]

    def one_stream(self, work: OneStream) -> Outcome:
        started = time.perf_counter()
        drawn = self.generate([work.prompt], work.tokens, 1)
        return Outcome(time.perf_counter() - started, len(drawn[0]))

    def branching(self, work: Branching) -> Outcome:
        started = time.perf_counter()
        drawn = self.generate([work.prompt], work.tokens, work.branches)
        return Outcome(time.perf_counter() - started, sum(map(len, drawn)))

    def step_search(self, work: StepSearch) -> Outcome:
        nodes, total = [work.prompt], 0
        started = time.perf_counter()
        for _ in range(work.depth):
            width = work.children // len(nodes)
            drawn = self.generate(nodes, work.step, width)
            total += sum(map(len, drawn))
            children = [nodes[i // width] + ids for i, ids in enumerate(drawn)]
            scored = self.generator.score_batch(
                [list(map(str, child + work.continuation)) for child in children], max_input_length=0
            )
            scores = np.array([np.mean(result.log_probs[-work.scored_tokens :]) for result in scored])
            nodes = [children[i] for i in np.argsort(-scores, kind="stable")[: work.kept]]
        return Outcome(time.perf_counter() - started, total)

    def prefill(self, work: Prefill) -> Outcome:
        prompt = [list(map(str, work.prompt))]
        started = time.perf_counter()
        found = self.generator.generate_batch(
            prompt,
            max_length=1,
            min_length=1,
            sampling_topk=1,
            return_logits_vocab=True,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - started
        assert len(found[0].sequences_ids[0]) == 1
        return Outcome(seconds, work.prompt_tokens)
