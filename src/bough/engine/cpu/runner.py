"""A decoder for the compiled pass: its weights packed, its tables and records laid out, working memory kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from bough.core import Sampling
from bough.models import Decoder
from bough.models.decoder import Norm, SparseMlp
from bough.models.packed import PackedLinear, pack_decoder, packed_as

from ..pool import Pool
from ..query import QueryRun
from ..sampler import Drawing, Drawn, draw
from .attend import scratch_bytes
from .forward import ACTIVATIONS
from .plan import Plan, columns
from .records import DRAW, LAYER, LINEAR, MEMORY, MODEL, PASS
from .team import Team

_LARGE = 64 << 20  # bytes of logits that are not kept for the next pass


def unsupported(decoder: Decoder) -> str | None:
    """Why the compiled pass cannot run this decoder here; None if it can."""
    config = decoder.config
    weight = next(decoder.parameters())
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    if weight.dtype != torch.bfloat16:
        return f"the model is in {weight.dtype}"
    features = get_host_cpu_features()
    missing = [name for name in ("avx512f", "avx512dq", "avx512bw", "avx512bf16", "avx512vnni") if not features.get(name)]
    if missing:
        return f"the CPU lacks {', '.join(missing)}"
    if any(isinstance(layer.mlp, SparseMlp) for layer in decoder.layers):
        return "it is a mixture of experts"
    if config.traits.qk_norm == "full" or config.qkv_clip is not None:
        return "its queries and keys are normalised over all heads together, or clipped"
    if config.activation not in ACTIVATIONS:
        return f"its activation is {config.activation}"
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim, config.num_heads * config.head_dim)
    if any(size % 16 for size in sizes):
        return f"its sizes {sizes} are not multiples of 16"
    return None


class CompiledRunner:
    """Runs passes of a decoder on the CPU; see `bough.engine.runner.Runner`.

    The decoder's linear layers are packed in place, in bfloat16 where they are not packed already.

    Args:
        decoder: one that is not `unsupported`.
        pool: its keys and values, in bfloat16.
        threads: how many run a pass.
    """

    def __init__(self, decoder: Decoder, pool: Pool, threads: int) -> None:
        if packed_as(decoder) is None:
            pack_decoder(decoder, "bf16")
        self._decoder, self._pool, self._team = decoder, pool, Team.shared(threads)
        config = decoder.config
        self._group = config.num_heads // config.num_kv_heads
        self._windows = sorted({w for layer in config.layers if (w := layer.attention.window) is not None})
        self._kept: list[Tensor] = []  # what the records have the addresses of
        self._model = self._describe(decoder, pool)
        self._pass, self._memory, self._draws = np.zeros(1, PASS), np.zeros(1, MEMORY), np.zeros(1, DRAW)
        self._plan: Plan | None = None
        self._rows = self._wanted = 0
        self._logits = torch.empty(0, 0)
        self._packed_head = isinstance(decoder.head, PackedLinear)

    # The model's records ------------------------------------------------------------------------------------

    def _address(self, tensor: Tensor | None) -> int:
        """Of a tensor that is kept from now on; 0 for None."""
        if tensor is None:
            return 0
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _linear(self, linear: PackedLinear) -> tuple[int, ...]:
        panels = linear.codes.shape[0]
        bias = linear.bias
        if bias is not None:
            bias = torch.nn.functional.pad(bias.float(), (0, 16 * panels - len(bias)))
        return (self._address(linear.codes), self._address(linear.scales), linear.bits, linear.group,
                linear.in_features, linear.out_features, panels, self._address(bias))  # fmt: skip

    def _norm(self, norm: Norm | None) -> int:
        return 0 if norm is None else self._address(norm.weight.detach().float() + norm.offset)

    def _describe(self, decoder: Decoder, pool: Pool) -> np.ndarray:
        config = decoder.config
        layers = np.zeros(config.num_layers, LAYER)
        linears = np.zeros(4 * config.num_layers + 1, LINEAR)
        tables = [rotary.tables(torch.device("cpu")) for rotary in decoder.rotaries]
        for i, (layer, spec) in enumerate(zip(decoder.layers, config.layers, strict=True)):
            modules = layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down
            linears[4 * i : 4 * i + 4] = [self._linear(module) for module in modules]
            record = layers[i]
            for name, norm in (("norm", layer.attention_norm), ("post_norm", layer.attention_post_norm),
                               ("mlp_norm", layer.mlp_norm), ("mlp_post_norm", layer.mlp_post_norm)):  # fmt: skip
                record[name] = self._norm(norm)
            if (heads := layer.attention.qk_norm) is not None:
                query, key = (heads.weight.detach().float() + heads.offset).unbind()
                record["query_norm"], record["key_norm"] = self._address(query), self._address(key)
            if spec.rope is not None:
                record["cos"], record["sin"] = map(self._address, tables[spec.rope])
                record["rotated"] = config.ropes[spec.rope].dim
            record["window"], record["scale"] = spec.attention.window or 0, spec.attention.scale
            record["softcap"] = spec.attention.softcap or 0
        if isinstance(decoder.head, PackedLinear):
            linears[-1] = self._linear(decoder.head)
        self._layers, self._linears = layers, linears
        model = np.zeros(1, MODEL)
        record = model[0]
        scale = torch.tensor(config.embed_scale, dtype=torch.bfloat16).item()  # rounded, as in training
        values = {
            "layers": layers.ctypes.data, "linears": linears.ctypes.data, "depth": config.num_layers,
            "hidden": config.hidden_size, "heads": config.num_heads, "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim, "intermediate": config.intermediate_size,
            "activation": ACTIVATIONS[config.activation], "embed": self._address(decoder.embed.weight),
            "norm": self._norm(decoder.norm), "pool": pool.data.data_ptr(), "pool_slots": pool.total,
            "eps": config.norm_eps, "embed_scale": scale, "residual_scale": config.residual_scale,
        }  # fmt: skip
        for name, value in values.items():
            record[name] = value
        return model

    # Working memory -----------------------------------------------------------------------------------------

    def _fit(self, rows: int, wanted: int) -> None:
        """Have working memory for so many rows, and so many of them with logits."""
        if rows <= self._rows and wanted <= self._wanted:
            return
        rows, wanted = self._rows, self._wanted = max(rows, self._rows, 8), max(wanted, self._wanted, 8)
        config, threads, linears = self._decoder.config, self._team.threads, self._linears
        lanes = config.num_kv_heads * columns(rows, self._group)
        inputs, products = int(linears["inputs"].max()), max(rows, wanted)
        wide, mine = 64 * int(linears["panels"][:-1].max()), -(-scratch_bytes(config.head_dim) // 64) * 64
        sizes = {
            "x": rows * config.hidden_size * 4, "y": rows * config.hidden_size * 4,
            "hidden": rows * config.hidden_size * 4, "wide": rows * wide, "narrow": products * 2 * inputs,
            "scales": products * inputs // 8, "starts": products * inputs // 8,
            "query": lanes * config.head_dim * 2, "out": threads * lanes * config.head_dim * 4,
            "top": threads * lanes * 4, "mass": threads * lanes * 4, "mine": threads * mine,
        }  # fmt: skip
        starts = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes.values())])
        self._buffer = torch.empty(int(starts[-1]) + 64, dtype=torch.uint8)
        padding = -self._buffer.data_ptr() % 64
        record = self._memory[0]
        for name, start in zip(sizes, starts.tolist(), strict=False):
            record[name] = self._buffer.data_ptr() + padding + start
        record["wide_row"], record["narrow_row"], record["mine_bytes"] = wide, 2 * inputs, mine
        record["groups"] = inputs // 32  # the smallest groups
        first = padding + int(starts[list(sizes).index("hidden")])
        hidden = self._buffer[first : first + sizes["hidden"]]
        self._hidden = hidden.view(torch.float32).view(rows, config.hidden_size)

    # Passes -------------------------------------------------------------------------------------------------

    def run(self, runs: Sequence[QueryRun], tokens: np.ndarray, places: Sequence[int], version: int) -> Tensor:
        """Compute a pass; see `Runner.run`."""
        if self._plan is None or not self._plan.advance(runs, version):
            self._plan = Plan(runs, version, self._group, self._windows)
            self._fit(len(tokens), len(places))
        plan, config = self._plan, self._decoder.config
        if tokens.min() < 0 or tokens.max() >= config.vocab_size or plan.positions.max() >= config.context:
            self._decoder.check_indices(torch.from_numpy(tokens), torch.from_numpy(plan.positions[plan.where]))
        ordered, wanted = tokens[plan.source], plan.where[places]
        if len(wanted) > self._wanted:
            self._fit(len(tokens), len(wanted))
        logits = self._logits_memory(len(wanted))
        record = self._pass[0]
        for name, array in (("tokens", ordered), ("positions", plan.positions), ("slots", plan.slots),
                            ("visible", plan.visible), ("parts", plan.parts), ("wanted", wanted)):  # fmt: skip
            record[name] = array.ctypes.data
        record["count"], record["columns"], record["part_count"] = len(tokens), len(plan.visible), len(plan.parts)
        record["total"] = plan.parts["weight"].sum()
        record["wanted_count"] = len(wanted) if self._packed_head else 0
        record["draws"] = 0
        self._memory[0]["logits"] = logits.data_ptr()
        self._team.run(self._model.ctypes.data, self._pass.ctypes.data, self._memory.ctypes.data)
        if not self._packed_head:
            return self._decoder.logits(self._hidden[torch.from_numpy(wanted)].to(torch.bfloat16))
        return self._decoder.finish_logits(logits[:, : config.vocab_size])

    def draw(self, logits: Tensor, places: Sequence[int], drawings: Sequence[Drawing]) -> Drawn:
        """Draw tokens; see `Runner.draw`."""
        chosen = drawings[0].sampling
        simple = {id(drawing.sampling) for drawing in drawings} == {id(chosen)} and _only_temperature(chosen)
        if not simple or logits.stride(1) != 1:
            return draw(logits, places, drawings)
        count = len(drawings)
        inputs = np.empty((3, count), np.int64)
        inputs[0], inputs[2] = places, [drawing.position for drawing in drawings]
        inputs.view(np.uint64)[1] = [drawing.key for drawing in drawings]
        temperatures = np.full(count, chosen.temperature, np.float32)
        tokens, logprobs = np.empty(count, np.int64), np.empty((2, count), np.float32)
        record, shape = self._draws[0], self._pass[0]
        for name, array in (("places", inputs[0]), ("keys", inputs[1]), ("positions", inputs[2]), ("tokens", tokens),
                            ("temperatures", temperatures), ("logprobs", logprobs[0]),
                            ("sample_logprobs", logprobs[1])):  # fmt: skip
            record[name] = array.ctypes.data
        record["logits"], record["row"], record["vocabulary"] = logits.data_ptr(), 4 * logits.stride(0), logits.shape[1]
        record["count"] = count
        shape["count"], shape["wanted_count"], shape["draws"] = 0, 0, self._draws.ctypes.data
        self._team.run(self._model.ctypes.data, self._pass.ctypes.data, self._memory.ctypes.data)
        return tokens, logprobs[0], logprobs[1]

    def _logits_memory(self, count: int) -> Tensor:
        """``[count, whole panels]`` float32, kept from pass to pass while it is not large."""
        width = 16 * int(self._linears["panels"][-1])
        if count > len(self._logits):
            fresh = torch.empty(count, width)
            if fresh.nbytes > _LARGE:
                return fresh
            self._logits = fresh
        return self._logits[:count]


@lru_cache
def _only_temperature(sampling: Sampling) -> bool:
    """Whether the model's distribution is at most sharpened or flattened."""
    return replace(sampling, temperature=1.0).plain
