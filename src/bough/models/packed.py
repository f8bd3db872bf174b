"""Linear layers with weights of 16, 8 or 4 bits, in the order in which CPU dot-product instructions read them.

Rows come in panels of 16, one to a lane; the inputs that a lane multiplies in one instruction lie side by side.
Weights of 8 and 4 bits are rounded to nearest on load, in groups of inputs that share a float16 scale; activations
are then rounded to 8 bits as they come, so that products are of integers. :meth:`PackedLinear.forward` is the
reference for faster kernels: the same numbers, slowly. Rounding by groups: arXiv:2206.01861.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bough.core.errors import InvalidInput, UnsupportedError

from .decoder import Decoder, SparseMlp
from .memory import empty

P = ParamSpec("P")
R = TypeVar("R")

WEIGHTS = ("fp32", "bf16", "int8", "int4")  # the precisions that a decoder can be loaded in

PANEL = 16  # rows that are stored together
GROUPS = (128, 64, 32)  # inputs that may share a scale

_LINEARS = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")  # of a layer
_BITS = {"bf16": 16, "int8": 8, "int4": 4}
_INPUTS = {16: 2, 8: 4, 4: 8}  # inputs of a row in one 32-bit word
_CHUNK = 1 << 18  # weights that are rounded at a time: the temporaries stay in the cache

# The largest weight of a group of 4 bits becomes -8 at 8. Less leaves room on the other side, more clips it and
# makes the steps finer. On normal weights a grid twice as fine gains 0.3 % of the error.
_EXTREMES = tuple(7 + step / 4 for step in range(9))

# The largest scale of a tensor, as float16, must be finite, and precise to 1.6 %; below 2^-14 they are subnormal.
_LARGEST_SCALE, _SMALLEST_SCALE = 65504.0, 2.0**-18


def _one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Without torch's threads: on chunks that fit a core's cache, waiting for each other costs more than it saves."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapped


class PackedLinear(nn.Module):
    """A linear layer ``[..., K] -> [..., N]`` whose weight is stored in panels of 16 rows; made by :meth:`pack`.

    With P = ceil(N / 16), rows beyond N zero, W[n, k] ~ q[n, k] * scale[n, k // group], and r = 0 .. 15:

    - 16 bits: ``codes [P, K/2, 16, 2]`` bfloat16, ``codes[p, j, r, i] = W[16p + r, 2j + i]``.
    - 8 bits: ``codes [P, K/4, 16, 4]`` uint8, ``codes[p, j, r, i] = q[16p + r, 4j + i] + 128``, q in -127 .. 127.
    - 4 bits: ``codes [P, K/8, 16, 4]`` uint8; the low nibble is ``q[16p + r, 8j + i] + 8``, the high one
      ``q[16p + r, 8j + 4 + i] + 8``, q in -8 .. 7.

    ``scales [P, K/group, 16]`` is float16, None for 16 bits; those of 4 bits may be negative, and a group of zeros
    has scale 0. ``bias [N]`` is float32 or None. ``group`` is 0 for 16 bits. A change of the module's type leaves all
    of them as they are.
    """

    codes: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(
        self, codes: Tensor, scales: Tensor | None, bias: Tensor | None, *, bits: int, group: int, out_features: int
    ) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        self.in_features, self.out_features = codes.shape[1] * _INPUTS[bits], out_features
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    @torch.no_grad()
    @_one_thread
    def pack(
        cls, weight: Tensor, bias: Tensor | None, bits: int, group: int | None = None, name: str = "weight"
    ) -> PackedLinear:
        """Pack ``weight [N, K]`` and ``bias [N]`` of any floating types; ``name`` is the weight's in errors.

        ``group`` is 32, 64 or 128 inputs; default: 32 for 4 bits, the largest that divides K for 8. The scale of a
        group is its largest magnitude / 127 for 8 bits; for 4 bits the one of a few, of either sign, with the least
        squared error. Takes the memory of the result and a few MiB.

        Raises:
            InvalidInput: no such ``bits`` or ``group``; or weights that are not finite.
            UnsupportedError: K is not divisible by 2 (16 bits) or by the group; or all weights are so small, or one
                so large, that float16 cannot hold the scales.
        """
        if bits not in _INPUTS:
            raise InvalidInput(f"bits={bits} is not one of {', '.join(map(str, _INPUTS))}")
        if group is not None and (bits == 16 or group not in GROUPS):
            raise InvalidInput(f"group={group} is not one of {', '.join(map(str, GROUPS))} (8 and 4 bits only)")
        rows, inputs = weight.shape
        _check_inputs(inputs, bits, name, group)
        _check_values(weight, bits, name)
        if bits == 16:
            group = 0
        elif group is None:
            group = 32 if bits == 4 else next(size for size in GROUPS if inputs % size == 0)
        panels, words = -(-rows // PANEL), inputs // _INPUTS[bits]
        kind, width = (torch.bfloat16, 2) if bits == 16 else (torch.uint8, 4)
        codes = empty((panels, words, PANEL, width), kind, weight.device)
        scales = None
        if group:
            scales = torch.empty(panels, inputs // group, PANEL, dtype=torch.float16, device=weight.device)
        step = max(1, _CHUNK // (PANEL * inputs))
        for start in range(0, panels, step):
            some = weight[start * PANEL : (start + step) * PANEL]
            some = F.pad(some, (0, 0, 0, -len(some) % PANEL))
            if bits == 16:
                packed = some.to(torch.bfloat16).contiguous()
            else:
                assert scales is not None
                packed, scale = (_round8 if bits == 8 else _round4)(some.float().contiguous(), group)
                scales[start : start + step] = scale.view(-1, PANEL, inputs // group).transpose(1, 2)
            lanes = packed.view(torch.int32).view(-1, PANEL, words)  # one word each: the transpose moves whole words
            codes[start : start + step].view(torch.int32).squeeze(-1).copy_(lanes.transpose(1, 2))
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        return cls(codes, scales, bias, bits=bits, group=group, out_features=rows)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The weight ``[N, K]``: bfloat16 for 16 bits, as it was packed; q * scale in float32 for 8 and 4."""
        if self.bits == 16:
            return self.codes.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]
        assert self.scales is not None
        if self.bits == 8:
            values = self.codes.transpose(1, 2).float() - 128
        else:
            nibbles = torch.stack([self.codes & 15, self.codes >> 4], dim=3)  # [P, K/8, 16, 2, 4]
            values = nibbles.transpose(1, 2).float() - 8
        scales = self.scales.transpose(1, 2).float().reshape(-1, self.in_features // self.group, 1)
        weight = values.reshape(len(scales), -1, self.group) * scales
        return weight.view(-1, self.in_features)[: self.out_features]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` -> ``[..., N]`` of the same type: the reference, which unpacks the weight at each call.

        With 8 and 4 bits, each row's groups of inputs are rounded to int8 by :func:`round_activations`; the product
        is of float32. A row with an input that is not finite gives NaN.
        """
        if self.bits == 16:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.dense().to(x.dtype), bias)
        return F.linear(round_activations(x, self.group), self.dense(), self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Its sizes, as torch prints modules."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self


def round_activations(x: Tensor, group: int) -> Tensor:
    """``[..., K]`` -> float32 ``[..., K]``: int8 times the scale of the group, max |x| / 127, in float32.

    To nearest, ties to even. A group of zeros stays so; one with an infinity or NaN is NaN.
    """
    groups = x.float().unflatten(-1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    # Where the scale is subnormal it is inexact, and a quotient can exceed 127.
    q = (groups / scale).round().clamp(-127, 127)
    return torch.where(scale == 0, 0, q * scale).flatten(-2)


def _round8(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """``[R, K]`` float32 -> uint8 ``[R, K]``, zero at 128, and float16 scales ``[R, K/group]``."""
    groups = rows.view(len(rows), -1, group)
    most = groups.abs().amax(-1)
    scale = (most / 127).half()
    # A subnormal scale that was rounded down would clip the largest weights: take the next one up.
    scale = (scale.view(torch.int16) + (scale.float() * 127.5 < most)).view(torch.float16)
    q = (groups * _inverse(scale.float())[..., None]).round_().clamp_(-127, 127)
    return q.add_(128).to(torch.uint8).view(rows.shape), scale


def _round4(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """``[R, K]`` float32 -> uint8 ``[R, K/2]``, in the order of the nibbles, and float16 scales ``[R, K/group]``."""
    groups = rows.view(-1, group).t().contiguous()  # [group, G]: every step below is along whole vectors
    most, least = groups.amax(0), groups.amin(0)
    extreme = torch.where(most > -least, most, least)
    scales = (extreme / -torch.tensor(_EXTREMES, device=rows.device)[:, None]).half().float()  # [S, G]
    errors = torch.empty_like(scales)
    u, q = torch.empty_like(groups), torch.empty_like(groups)
    for inverse, error in zip(_inverse(scales), errors, strict=True):
        torch.mul(groups, inverse, out=u)
        torch.round(u, out=q).clamp_(-8, 7).sub_(u)
        torch.sum(q.square_(), 0, out=error)
    errors = torch.where(scales == 0, torch.inf, errors * scales.square())
    chosen = scales.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)
    torch.mul(groups, _inverse(chosen), out=u)
    codes = u.round_().clamp_(-8, 7).add_(8).to(torch.uint8).t().contiguous().view(torch.int32)
    codes = codes.view(len(rows), -1, 2)  # words of four codes: those of the low nibbles, those of the high ones
    return codes[..., 0] | codes[..., 1] << 4, chosen.half().view(len(rows), -1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


def pack_decoder(decoder: Decoder, weights: str) -> Decoder:
    """Pack a decoder's linear layers in place, one by one, and round the rest to bfloat16; returns it.

    ``weights`` is "bf16", "int8" or "int4". Packed are the projections of attention and MLP and the language-model
    head; with "int4" the head has 8 bits, as its error goes straight into the logits. A tied head becomes one of its
    own, and the embedding stays for look-ups. Classification heads are not packed. A decoder that is packed so
    already is left as it is.

    Raises (before anything is packed):
        InvalidInput: ``weights`` is none of them, or a weight is not finite.
        UnsupportedError: the decoder is a mixture of experts, or packed in another precision, or has a layer that
            :meth:`PackedLinear.pack` cannot pack.
    """
    check_packable(decoder, weights)
    if packed_as(decoder) == weights:
        return decoder
    for name, weight, bits in _weights_to_pack(decoder, weights):
        _check_values(weight, bits, name)
    pack_ends(decoder, weights)
    for index in range(decoder.config.num_layers):
        pack_layer(decoder, index, weights)
    return decoder


def packed_as(decoder: Decoder) -> str | None:
    """The precision that a decoder is packed in: "bf16", "int8" or "int4"; None for one that is not packed."""
    first = decoder.get_submodule("layers.0.attention.qkv")
    if not isinstance(first, PackedLinear):
        return None
    return next(weights for weights, bits in _BITS.items() if bits == first.bits)


def pack_layer(decoder: Decoder, index: int, weights: str) -> None:
    """The part of :func:`pack_decoder` that is layer ``index``."""
    layer = decoder.layers[index]
    for name in _LINEARS:
        parent, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(parent), attribute, _packed(decoder, f"layers.{index}.{name}", _BITS[weights]))
    layer.to(torch.bfloat16)


def pack_ends(decoder: Decoder, weights: str) -> None:
    """The part of :func:`pack_decoder` that is no layer: the head, the embedding, the last norm."""
    if decoder.head_kind == "lm":
        decoder.head = _packed(decoder, _head(decoder), _head_bits(weights))
    for module in (decoder.embed, decoder.norm, decoder.head):
        if module is not None:
            module.to(torch.bfloat16)


def check_packable(decoder: Decoder, weights: str) -> None:
    """Raise what :func:`pack_decoder` raises for a decoder's structure, which may be on the meta device."""
    if weights not in _BITS:
        raise InvalidInput(f"weights={weights!r} is not one of {', '.join(_BITS)}, which linear layers are packed in")
    present = packed_as(decoder)
    if present == weights:
        return
    if present is not None:
        raise UnsupportedError(
            f"the decoder's weights are {present} already and cannot become {weights}; load it with those"
        )
    if any(isinstance(layer.mlp, SparseMlp) for layer in decoder.layers):
        raise UnsupportedError(
            f"weights={weights!r} is not there for mixtures of experts ({decoder.config.model_type}), whose experts "
            "are not packed; load it with dtype='bfloat16'"
        )
    for name, weight, bits in _weights_to_pack(decoder, weights):
        _check_inputs(weight.shape[1], bits, name)


def _packed(decoder: Decoder, name: str, bits: int) -> PackedLinear:
    module = decoder.get_submodule(name)
    bias = getattr(module, "bias", None)
    if bias is not None and bits == 16:
        bias = bias.to(torch.bfloat16)
    weight: Tensor = module.get_parameter("weight")
    if name == "embed":
        weight = weight[: decoder.config.vocab_size]  # what is read only has no logit
    return PackedLinear.pack(weight, bias, bits, name=f"{name}.weight")


def _head(decoder: Decoder) -> str:
    return "embed" if decoder.head is None else "head"


def _head_bits(weights: str) -> int:
    return max(8, _BITS[weights])


def _weights_to_pack(decoder: Decoder, weights: str) -> Iterator[tuple[str, Tensor, int]]:
    """Every weight that is packed, with its name and bits."""
    if decoder.head_kind == "lm":
        name = f"{_head(decoder)}.weight"
        yield name, decoder.get_parameter(name), _head_bits(weights)
    for index in range(decoder.config.num_layers):
        for linear in _LINEARS:
            name = f"layers.{index}.{linear}.weight"
            yield name, decoder.get_parameter(name), _BITS[weights]


def _check_inputs(inputs: int, bits: int, name: str, group: int | None = None) -> None:
    divisor = 2 if bits == 16 else group or min(GROUPS)
    if inputs % divisor:
        remedy = "leave it unpacked" if bits == 16 else "load it with weights='bf16'"
        raise UnsupportedError(
            f"{name} has {inputs} inputs, which is not a multiple of {divisor}, and cannot have {bits} bits; {remedy}"
        )


def _check_values(weight: Tensor, bits: int, name: str) -> None:
    if bits == 16 or not weight.numel():
        return
    most = max(abs(bound.item()) for bound in torch.aminmax(weight.detach()))
    if not most < torch.inf:
        raise InvalidInput(f"{name} has NaN or infinite values, which cannot be rounded to {bits} bits")
    steps = 127 if bits == 8 else 8
    if most and not _SMALLEST_SCALE <= most / steps <= _LARGEST_SCALE:
        raise UnsupportedError(
            f"{name} has weights up to {most:.3g}; float16 can hold their scales for {bits} bits from "
            f"{_SMALLEST_SCALE * steps:.2g} to {_LARGEST_SCALE * steps:.2g} only; load it with weights='bf16'"
        )
