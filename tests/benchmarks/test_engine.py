"""The benchmark's contenders do the work they state, and its conversions and limits are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contenders import CONTENDERS, Contender, mean_logprobs
from limits import limit
from workloads import Branching, OneStream, Particles, Phase, Prefill, Serving, Shape, StepSearch, Workload, decode

from bough.models import Decoder, save_decoder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
WORKS: list[Workload] = [
    OneStream(96, prompt_tokens=5, tokens=4),
    Branching(96, prompt_tokens=9, branches=2, tokens=3),
    StepSearch(96, prompt_tokens=6, depth=2, kept=2, width=2, step=3, scored_tokens=2),
    Serving(96, count=4, gap=1e-6, prefix_tokens=8, longest=20, shortest=4, most=4, fewest=2),
    Prefill(96, prompt_tokens=20),
    Particles(96, prompt_tokens=6, particles=4, tokens=6, every=2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_decoder(Decoder.from_config(CONFIG, seed=0).to(torch.bfloat16), folder)
    return folder


def contender(name: str, folder: Path, precision: str) -> Contender:
    entry = CONTENDERS[name]
    if entry.missing:
        pytest.skip(f"{name} needs {', '.join(entry.missing)}; see benchmarks/requirements.txt")
    threads = torch.get_num_threads()
    try:
        return entry.load()(folder, precision, 1)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name, entry in CONTENDERS.items() for precision in entry.precisions]
)
def test_a_contender_makes_the_stated_tokens(name: str, precision: str, folder: Path) -> None:
    made = contender(name, folder, precision)
    for work in WORKS:
        if work.letter in CONTENDERS[name].works:
            outcome = made.run(work)  # which refuses another number of tokens than the work's
            assert outcome.produced == work.produced
            assert outcome.seconds > 0


def test_a_contender_that_makes_fewer_tokens_is_refused(folder: Path) -> None:
    made = contender("bough", folder, "bf16")
    short, stated = WORKS[0], OneStream(96, prompt_tokens=5, tokens=5)
    made.one_stream = lambda work: type(made).one_stream(made, short)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="4 tokens were produced instead of 5"):
        made.run(stated)


@pytest.fixture(scope="module")
def reference(folder: Path) -> tuple[list[int], np.ndarray]:
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(0).integers(3, 96, 48).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return tokens, model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.02), ("int8", 0.05), ("int4", 0.5)])
def test_a_gguf_file_gives_the_logits_of_its_checkpoint(
    precision: str, error: float, folder: Path, reference: tuple[list[int], np.ndarray]
) -> None:
    tokens, expected = reference
    found = contender("llama.cpp", folder, precision).logits(tokens)  # type: ignore[attr-defined]
    assert np.abs(found - expected).mean() < error * expected.std()


def test_the_search_of_llama_cpp_goes_on_from_the_children_it_kept(folder: Path) -> None:
    """Its sequences after each scoring hold prompt and steps, as if they had been computed afresh."""
    made = contender("llama.cpp", folder, "bf16")
    work = WORKS[2]
    assert isinstance(work, StepSearch)
    assert made.run(work).produced == work.produced
    [context] = made._contexts.values()  # type: ignore[attr-defined]
    import llama_cpp

    for node in range(work.kept):
        last = llama_cpp.llama_memory_seq_pos_max(context.memory, node)
        assert last == work.prompt_tokens + work.depth * work.step - 1


def test_prompts_that_llama_cpp_serves_are_whole(folder: Path) -> None:
    """Also where two that share a prefix arrive together, and none of it has been computed yet."""
    made = contender("llama.cpp", folder, "bf16")
    import llama_cpp

    work = WORKS[3]
    assert isinstance(work, Serving)
    made.run(work)
    [context] = made._contexts.values()  # type: ignore[attr-defined]
    for i, request in enumerate(work.requests):
        assert llama_cpp.llama_memory_seq_pos_min(context.memory, i) == 0
        last = llama_cpp.llama_memory_seq_pos_max(context.memory, i)
        assert last == len(request.prompt) + request.tokens - 2


def test_mean_logprobs_are_those_of_a_log_softmax() -> None:
    logits, target = torch.randn(3, 4, 7), torch.tensor([1, 6, 0, 3])
    expected = logits.log_softmax(-1).gather(2, target.expand(3, -1)[..., None]).mean((1, 2))
    assert mean_logprobs(logits.numpy(), target.numpy()) == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_phase_counts_what_a_loop_over_its_steps_counts() -> None:
    rows, steps, prefix = 3, 5, 11
    pairs = sum(rows * (prefix + step) for step in range(1, steps + 1))
    keys = sum(prefix + rows * step for step in range(1, steps + 1))
    assert decode(rows, steps, prefix, prefix) == Phase(steps, rows * steps, rows * steps, pairs, keys)


def test_a_shape_counts_its_parameters() -> None:
    for tied in (False, True):
        config = {**CONFIG, "tie_word_embeddings": tied}
        parameters = sum(parameter.numel() for parameter in Decoder.from_config(config, seed=0).parameters())
        assert Shape.of(config).parameters == parameters


def test_the_limit_is_the_larger_of_moving_and_computing() -> None:
    shape = Shape.of(CONFIG)
    for work in WORKS:
        found = limit(work, shape, "bf16", 1)
        assert found.seconds >= max(found.bytes / found.bandwidth, found.operations / found.rate) * 0.999
        assert found.seconds <= found.bytes / found.bandwidth + found.operations / found.rate
    assert limit(WORKS[0], shape, "int4", 1).bytes < limit(WORKS[0], shape, "bf16", 1).bytes


def test_every_repetition_has_a_prompt_of_its_own_and_all_contenders_the_same() -> None:
    assert Branching(96, 1).prompt == Branching(96, 1).prompt != Branching(96, 2).prompt
    assert Serving(96, 1).requests == Serving(96, 1).requests
    shared = [request.prompt[:256] for request in Serving(96, 1).requests[1::2]]
    assert all(prefix == shared[0] for prefix in shared)


def test_results_of_a_part_can_be_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import engine

    part = engine.Part("nano", "bf16", WORKS[0])
    for name in ("bough", "llama.cpp"):
        for seconds in (1.0, 2.0):
            outcome = engine.Outcome(seconds if name == "bough" else 4.0, 4, {"others": 0.0})
            part.add(name, WORKS[0], outcome, None)
    result = part.result({"seconds": 0.5, "bytes": 1.0, "operations": 1.0, "bandwidth": 1.0, "rate": 1.0})
    assert result["ratios"]["llama.cpp"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    engine.show({"parts": {part.key: json.loads(json.dumps(result))}, "figures": {}})
    assert "3.00 (2.00-4.00)" in capsys.readouterr().out
