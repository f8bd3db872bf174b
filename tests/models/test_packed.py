"""Packed weights: their layout, what rounding costs, and decoders that are packed in place or as they load."""

from __future__ import annotations

import copy
import gc
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bough.core.errors import CheckpointError, InvalidInput, UnsupportedError
from bough.models import Decoder, PackedLinear, dense_attend, load_decoder, pack_decoder, packed_as, save_decoder
from bough.models.packed import round_activations
from checkpoints import FAMILIES, make_checkpoint

MIXTURES = ("mixtral", "qwen3-moe", "olmoe")
DENSE = [family for family in FAMILIES if family not in MIXTURES]
SIZES = [(1, 32), (16, 64), (19, 96), (48, 128), (33, 256)]  # [N, K]


def normal(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unpacked(linear: PackedLinear) -> np.ndarray:
    """The weight [N, K] by the documented index formulas, one number at a time."""
    codes = linear.codes.float().numpy() if linear.bits == 16 else linear.codes.numpy().astype(int)
    weight = np.zeros((linear.out_features, linear.in_features), np.float32)
    for n in range(linear.out_features):
        p, r = divmod(n, 16)
        for k in range(linear.in_features):
            if linear.bits == 16:
                weight[n, k] = codes[p, k // 2, r, k % 2]
                continue
            if linear.bits == 8:
                q = codes[p, k // 4, r, k % 4] - 128
            else:
                byte = codes[p, k // 8, r, k % 4]
                q = (byte % 16 if k % 8 < 4 else byte // 16) - 8
            weight[n, k] = np.float32(q) * np.float32(linear.scales[p, k // linear.group, r].item())
    return weight


def same(a: Decoder, b: Decoder) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


@torch.inference_mode()
def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.logits(decoder(tokens, torch.arange(len(tokens)), dense_attend([len(tokens)])).last)


# The layout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "inputs"), SIZES)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_codes_lie_where_the_layout_says(bits, rows, inputs):
    weight = normal(rows, inputs)
    linear = PackedLinear.pack(weight, None, bits)
    panels, width = -(-rows // 16), {16: 2, 8: 4, 4: 8}[bits]
    assert linear.codes.shape == (panels, inputs // width, 16, 2 if bits == 16 else 4)
    assert linear.codes.dtype == (torch.bfloat16 if bits == 16 else torch.uint8)
    dense = linear.dense()
    assert dense.shape == weight.shape
    assert np.array_equal(unpacked(linear), dense.float().numpy())
    if bits == 16:
        assert linear.scales is None
        assert dense.dtype == torch.bfloat16
    else:
        assert linear.scales.shape == (panels, inputs // linear.group, 16)
        assert linear.scales.dtype == torch.float16
        assert dense.dtype == torch.float32
        # Every weight is at the nearest step, but for what is clipped at the end of the scale.
        step = linear.scales.transpose(1, 2).float().reshape(-1, inputs // linear.group)[:rows].abs()
        step = step.repeat_interleave(linear.group, 1)
        error = (weight - dense).abs() / step
        assert error.max() < (0.54 if bits == 8 else 1.6)
        assert (error[dense.abs() < 6.5 * step] <= 0.5001).all()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_missing_rows_are_zero(bits):
    linear = PackedLinear.pack(normal(19, 64) + 1, None, bits)
    missing = linear.codes[1, :, 3:]
    assert (missing == {16: 0, 8: 128, 4: 0x88}[bits]).all()
    if bits != 16:
        assert (linear.scales[1, :, 3:] == 0).all()


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_buffers_are_contiguous_and_aligned(bits, dtype):
    made = PackedLinear.pack(normal(37, 256).to(dtype), normal(37).to(dtype), bits)
    for linear in (made, copy.deepcopy(made)):
        for _, buffer in linear.named_buffers():
            assert buffer.is_contiguous()
            assert buffer.data_ptr() % 64 == 0
    assert made.bias.dtype == torch.float32
    assert not list(made.parameters())


def test_sixteen_bits_are_exact():
    weight = normal(37, 66).to(torch.bfloat16)
    linear, x = PackedLinear.pack(weight, normal(37), 16), normal(5, 66, seed=1, scale=1.0)
    assert torch.equal(linear.dense(), weight)
    assert torch.equal(linear(x), F.linear(x, weight.float(), linear.bias))
    assert linear(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert linear.group == 0


@pytest.mark.parametrize(
    ("bits", "inputs", "group", "expected"),
    [(8, 256, None, 128), (8, 192, None, 64), (8, 96, None, 32), (8, 256, 32, 32), (4, 256, None, 32)]
    + [(4, 256, 128, 128), (4, 192, 64, 64)],
)
def test_groups(bits, inputs, group, expected):
    linear = PackedLinear.pack(normal(3, inputs), None, bits, group)
    assert linear.group == expected
    assert np.array_equal(unpacked(linear), linear.dense().numpy())


def test_large_weights_are_packed_in_parts_and_any_strides():
    weight = normal(1500, 512)
    whole = PackedLinear.pack(weight, None, 4)
    assert torch.equal(whole.codes[60:61], PackedLinear.pack(weight[960:976], None, 4).codes)
    transposed = PackedLinear.pack(weight.t().contiguous().t(), None, 4)
    assert torch.equal(transposed.codes, whole.codes)


def test_a_change_of_type_leaves_the_codes_and_scales():
    linear = PackedLinear.pack(normal(16, 64), normal(16), 8)
    before = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    torch.nn.Sequential(linear).to(torch.bfloat16).double().half()
    assert all(buffer.dtype == before[name].dtype for name, buffer in linear.named_buffers())
    assert all(torch.equal(buffer, before[name]) for name, buffer in linear.named_buffers())


# What rounding costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "group", "most"),
    [(8, 128, 0.0068), (8, 32, 0.0055), (4, 32, 0.083), (4, 128, 0.099), (16, None, 0.0018)],
)
def test_the_error_of_normal_weights(bits, group, most):
    weight = normal(256, 512)
    error = PackedLinear.pack(weight, None, bits, group).dense().float() - weight
    assert 0.75 * most < error.norm() / weight.norm() < most


@pytest.mark.parametrize("sign", [1, -1])
def test_four_bits_hold_sixteen_levels_of_either_sign(sign):
    levels = torch.arange(-8, 8).repeat(2) * (sign * 2.0**-6)
    linear = PackedLinear.pack(levels.expand(5, 32), None, 4)
    assert torch.equal(linear.dense(), levels.expand(5, 32))
    assert (linear.scales[0, 0, :5] * sign > 0).all()


def test_four_bits_beat_the_scale_that_holds_the_largest_weight():
    weight = normal(64, 256)
    groups = weight.view(64, -1, 32)
    step = groups.abs().amax(-1, keepdim=True) / 7
    plain = ((groups / step).round() * step - groups).square().sum(-1)
    ours = (PackedLinear.pack(weight, None, 4).dense() - weight).view(64, -1, 32).square().sum(-1)
    assert ours.sum() < 0.87 * plain.sum()
    assert (ours < 1.01 * plain).all()  # in every group, up to the rounding of the scale


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_and_weights_far_below_the_others(bits):
    weight = normal(16, 128)
    weight[0] = 0
    weight[1, :64] = 0
    weight[2, :32] = 1e-7 * torch.linspace(-1, 1, 32)  # the scale is subnormal
    weight[3, :32] = 1e-30
    linear = PackedLinear.pack(weight, None, bits, 32)
    dense = linear.dense()
    assert torch.isfinite(linear.scales).all()
    assert (dense[0] == 0).all() and (dense[1, :64] == 0).all()
    smallest = 2.0**-24  # of float16; half of it is below no scale, but for 4 bits it is below what 8 steps hold
    assert (dense - weight)[2, :32].abs().max() <= smallest * (0.5 if bits == 8 else 4)
    assert dense[3, :32].abs().max() == 0
    assert (linear.scales[0, :, 0] == 0).all()
    empty = PackedLinear.pack(torch.zeros(16, 128), None, bits)
    assert (empty.dense() == 0).all()
    assert (empty(normal(2, 128)) == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale", [2e-4, 1.0, 1e4])
def test_the_error_is_the_same_at_any_size_of_the_weights(bits, scale):
    weight = normal(64, 128, scale=scale * (4 if bits == 8 else 1))
    relative = (PackedLinear.pack(weight, None, bits).dense() - weight).norm() / weight.norm()
    assert relative < (0.007 if bits == 8 else 0.085)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_cannot_be_rounded_are_named(bits):
    weight = normal(4, 64)
    for value in (float("nan"), float("inf"), -float("inf")):
        weight[2, 3] = value
        with pytest.raises(InvalidInput, match=rf"some\.weight has NaN or infinite values.*{bits} bits"):
            PackedLinear.pack(weight, None, bits, name="some.weight")
    weight[2, 3] = 1e7
    with pytest.raises(UnsupportedError, match=r"some\.weight has weights up to 1e\+07.*float16.*weights='bf16'"):
        PackedLinear.pack(weight, None, bits, name="some.weight")
    with pytest.raises(UnsupportedError, match=r"some\.weight has weights up to 2.*e-09"):
        PackedLinear.pack(1e-9 * normal(4, 64, scale=1.0).clamp(-2, 2), None, bits, name="some.weight")


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InvalidInput, match="bits=3 is not one of 16, 8, 4"):
        PackedLinear.pack(normal(4, 64), None, 3)
    with pytest.raises(InvalidInput, match="group=48 is not one of 128, 64, 32"):
        PackedLinear.pack(normal(4, 96), None, 8, 48)
    with pytest.raises(InvalidInput, match="group=32"):
        PackedLinear.pack(normal(4, 96), None, 16, 32)
    with pytest.raises(UnsupportedError, match=r"weight has 96 inputs, which is not a multiple of 128"):
        PackedLinear.pack(normal(4, 96), None, 4, 128)
    with pytest.raises(UnsupportedError, match=r"weight has 48 inputs.*multiple of 32.*8 bits; load it with"):
        PackedLinear.pack(normal(4, 48), None, 8)
    with pytest.raises(UnsupportedError, match=r"weight has 7 inputs.*multiple of 2.*leave it unpacked"):
        PackedLinear.pack(normal(4, 7), None, 16)


# The product -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "inputs", "group"), [(8, 256, 128), (8, 96, 32), (4, 64, 32), (4, 128, 128)])
def test_the_product_is_of_integers_scaled_by_groups(bits, inputs, group, dtype):
    linear = PackedLinear.pack(normal(21, inputs), normal(21, seed=1), bits, group)
    x = normal(7, inputs, seed=2, scale=1.0).to(dtype)
    codes = np.zeros((21, inputs), np.int64)
    scales = linear.scales.transpose(1, 2).reshape(-1, inputs // group)[:21].double().numpy()
    for n in range(21):
        for k in range(inputs):
            scale = scales[n, k // group]
            codes[n, k] = round(linear.dense()[n, k].item() / scale) if scale else 0
    expected = np.zeros((7, 21))
    for t, row in enumerate(x.float().numpy()):
        for g in range(inputs // group):
            some = slice(g * group, (g + 1) * group)
            scale = np.abs(row[some]).max() / np.float32(127)
            q = np.rint(row[some] / scale).astype(np.int64)
            expected[t] += (codes[:, some] @ q) * scales[:, g] * scale
    expected += linear.bias.double().numpy()
    y = linear(x)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    np.testing.assert_allclose(y.double().numpy(), expected, atol=tolerance, rtol=tolerance)


def test_rounded_activations_are_near_and_ties_go_to_even():
    x = normal(9, 128, scale=3.0)
    groups = x.view(9, 4, 32)
    error = (round_activations(x, 32).view_as(groups) - groups).abs()
    assert (error <= groups.abs().amax(-1, keepdim=True) / 127 * 0.5001).all()
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5] + [0.0] * 26)
    assert round_activations(x, 32).tolist()[:6] == [127, 0, 2, 2, 0, -2]
    assert torch.equal(round_activations(torch.zeros(2, 64), 32), torch.zeros(2, 64))
    least = 2.0**-149  # a subnormal scale is inexact: the largest input would be 135
    assert torch.equal(round_activations(torch.full((1, 32), 135 * least), 32), torch.full((1, 32), 127 * least))


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_inputs(bits):
    linear = PackedLinear.pack(normal(20, 64, scale=1.0), normal(20, seed=1), bits, 32)
    x = torch.zeros(6, 64)
    x[1, :32] = 1.0
    x[2, 5], x[3, 40], x[4, 63] = float("inf"), float("nan"), -float("inf")
    x[5] = 1e-45
    y = linear(x)
    assert torch.equal(y[0], linear.bias)
    assert torch.isfinite(y[1]).all() and torch.isfinite(y[5]).all()
    assert not torch.isfinite(y[2:5]).any()
    assert torch.isfinite(linear(torch.full((1, 64), 1e36))).all()
    assert linear(x[:0]).shape == (0, 20)
    assert linear(x.view(2, 3, 64)).shape == (2, 3, 20)


# Decoders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DENSE)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(folder, request.param)
    return folder


def test_a_decoder_packed_in_16_bits_computes_the_same(family, tokens):
    plain, packed = (load_decoder(family, context=96, weights="bf16") for _ in range(2))
    assert packed_as(plain) is None
    assert pack_decoder(packed, "bf16") is packed
    assert packed_as(packed) == "bf16"
    torch.testing.assert_close(logits(packed, tokens), logits(plain, tokens), rtol=0, atol=0)


def test_a_rounded_decoder_is_near_its_float32_self(family, tokens):
    """Random decoders amplify any error, so bfloat16's own is the measure: it has 9 bits, and int8 and int4 less."""
    exact = logits(load_decoder(family, context=96, dtype=torch.float32), tokens)
    error = {}
    for weights in ("bf16", "int8", "int4"):
        decoder = load_decoder(family, context=96, weights=weights)
        rounded = logits(decoder, tokens)
        assert rounded.dtype == torch.float32
        assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
        assert packed_as(decoder) == (None if weights == "bf16" else weights)
        error[weights] = (rounded - exact).norm()
    assert error["bf16"] < error["int8"] < 4 * error["bf16"]
    assert 3 * error["int8"] < error["int4"] < 25 * error["bf16"]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_loading_is_packing_after_loading(family, weights):
    assert same(
        load_decoder(family, context=96, weights=weights), pack_decoder(load_decoder(family, context=96), weights)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", ["llama2", "llama3"])
def test_weights_are_rounded_from_what_is_stored(tmp_path, dtype, tied):
    model = make_checkpoint(tmp_path / "whole", tied)
    model.to(dtype).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    loaded = load_decoder(tmp_path / "shards", weights="int4", dtype=torch.bfloat16)
    assert same(loaded, pack_decoder(load_decoder(tmp_path / "shards"), "int4"))
    assert loaded.embed.weight.dtype == torch.bfloat16
    assert not loaded.training


def test_types_may_be_mixed_where_everything_is_rounded(tmp_path):
    make_checkpoint(tmp_path, "llama2")
    tensors = load_file(tmp_path / "model.safetensors")
    down = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, down: tensors[down].to(torch.bfloat16)}, tmp_path / "model.safetensors")
    decoder = load_decoder(tmp_path, weights="int8")
    assert same(decoder, pack_decoder(load_decoder(tmp_path, dtype=torch.float32), "int8"))


@pytest.mark.parametrize("name", ["llama2", "llama3"])
@pytest.mark.parametrize(("weights", "bits", "head"), [("bf16", 16, 16), ("int8", 8, 8), ("int4", 4, 8)])
def test_what_is_packed(tmp_path, name, weights, bits, head):
    make_checkpoint(tmp_path, name)
    plain = load_decoder(tmp_path)
    tied, embedding = plain.head is None, plain.embed.weight.clone()
    decoder = pack_decoder(plain, weights)
    linears = [module for module in decoder.layers.modules() if isinstance(module, PackedLinear)]
    assert len(linears) == 4 * len(decoder.layers)
    assert {linear.bits for linear in linears} == {bits}
    assert isinstance(decoder.head, PackedLinear) and decoder.head.bits == head
    assert torch.equal(decoder.embed.weight, embedding.to(torch.bfloat16))
    if tied:
        assert (decoder.head.dense() - embedding).norm() < 0.01 * embedding.norm()
    assert {type(module).__name__ for module in decoder.modules()}.isdisjoint({"Linear"})
    first = next(decoder.parameters())
    assert (first.dtype, first.device.type) == (torch.bfloat16, "cpu")


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForProcessRewardModel"])
def test_classification_heads_are_not_packed(tmp_path, tokens, head):
    make_checkpoint(tmp_path, "qwen2", head=head)
    exact = logits(load_decoder(tmp_path), tokens)
    decoder = load_decoder(tmp_path, weights="int8")
    assert same(decoder, pack_decoder(load_decoder(tmp_path), "int8"))
    assert not any(isinstance(module, PackedLinear) for module in decoder.head.modules())
    assert isinstance(decoder.layers[0].mlp.down, PackedLinear)
    assert (logits(decoder, tokens) - exact).norm() < 0.1 * exact.norm()


def test_packing_again_changes_nothing_or_is_refused(tmp_path):
    make_checkpoint(tmp_path, "llama2")
    decoder = load_decoder(tmp_path, weights="int8")
    before = copy.deepcopy(decoder)
    codes = decoder.head.codes.data_ptr()
    assert pack_decoder(decoder, "int8") is decoder
    assert decoder.head.codes.data_ptr() == codes
    for other in ("int4", "bf16"):
        with pytest.raises(UnsupportedError, match=rf"weights are int8 already and cannot become {other}"):
            pack_decoder(decoder, other)
    assert same(decoder, before)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_mixtures_of_experts_are_refused(tmp_path, family, weights):
    make_checkpoint(tmp_path, family)
    (tmp_path / "unread").mkdir()
    (tmp_path / "unread/config.json").write_text((tmp_path / "config.json").read_text())
    says = rf"weights='{weights}' is not there for mixtures of experts.*load it with dtype='bfloat16'"
    with pytest.raises(UnsupportedError, match=says):
        load_decoder(tmp_path / "unread", weights=weights)  # before any weight is looked for
    with pytest.raises(UnsupportedError, match=says):
        pack_decoder(load_decoder(tmp_path), weights)
    assert load_decoder(tmp_path, weights="bf16").embed.weight.dtype == torch.bfloat16


def test_widths_that_do_not_divide_are_refused_before_anything_is_packed(tmp_path):
    make_checkpoint(tmp_path, "llama2", intermediate_size=80)
    says = r"layers\.0\.mlp\.down\.weight has 80 inputs, which is not a multiple of 32.*load it with weights='bf16'"
    with pytest.raises(UnsupportedError, match=says):
        load_decoder(tmp_path, weights="int4")
    decoder = load_decoder(tmp_path)
    before = copy.deepcopy(decoder)
    with pytest.raises(UnsupportedError, match=says):
        pack_decoder(decoder, "int4")
    assert same(decoder, before)
    assert packed_as(pack_decoder(decoder, "bf16")) == "bf16"


@pytest.mark.parametrize(("value", "error"), [(float("nan"), InvalidInput), (1e9, UnsupportedError)])
def test_weights_that_cannot_be_rounded_leave_the_decoder_as_it_was(tmp_path, value, error):
    make_checkpoint(tmp_path, "llama2")
    decoder = load_decoder(tmp_path)
    decoder.layers[2].mlp.down.weight.data[3, 4] = value
    with pytest.raises(error, match=r"layers\.2\.mlp\.down\.weight"):
        pack_decoder(decoder, "int8")
    assert packed_as(decoder) is None
    assert not any(isinstance(module, PackedLinear) for module in decoder.modules())
    save = load_file(tmp_path / "model.safetensors")
    save["model.layers.2.mlp.down_proj.weight"][3, 4] = value
    save_file(save, tmp_path / "model.safetensors")
    with pytest.raises(error, match=r"layers\.2\.mlp\.down\.weight"):
        load_decoder(tmp_path, weights="int8")


def test_unknown_and_contradictory_precisions_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="weights='int3' is not one of fp32, bf16, int8, int4"):
        load_decoder(tmp_path, weights="int3")
    for weights, dtype, right in (("int8", "float32", "bfloat16"), ("fp32", "bfloat16", "float32")):
        says = f"weights='{weights}' contradicts dtype='{dtype}': everything else is {right}"
        with pytest.raises(InvalidInput, match=says):
            load_decoder(tmp_path, weights=weights, dtype=getattr(torch, dtype))
    with pytest.raises(InvalidInput, match="weights='fp32' is not one of bf16, int8, int4"):
        make_checkpoint(tmp_path, "llama2")
        pack_decoder(load_decoder(tmp_path), "fp32")


def test_a_tied_duplicate_is_still_compared(tmp_path):
    make_checkpoint(tmp_path, "smollm2")
    tensors = load_file(tmp_path / "model.safetensors")
    other = tensors["model.embed_tokens.weight"] * (1 + 1e-4)  # less than bfloat16 can tell
    save_file({**tensors, "lm_head.weight": other}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight"):
        load_decoder(tmp_path, weights="int8")


# Memory and files --------------------------------------------------------------------------------------------------


def live_bytes() -> int:
    """The memory of all tensors there are."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_loading_never_holds_the_model_as_it_is_stored(tmp_path, monkeypatch, weights):
    make_checkpoint(tmp_path, "llama2", num_hidden_layers=8, hidden_size=128, intermediate_size=256)
    stored = (tmp_path / "model.safetensors").stat().st_size
    pack, seen = PackedLinear.pack, []

    def watched(*args, name, **kwargs):
        made = pack(*args, name=name, **kwargs)
        if name == "head.weight" or "qkv" in name:  # the first of each layer: the others are all there as stored
            seen.append(live_bytes() - before)
        return made

    monkeypatch.setattr(PackedLinear, "pack", watched)
    gc.collect()
    before = live_bytes()
    decoder = load_decoder(tmp_path, weights=weights)
    assert len(seen) == 8 + 1
    ours = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    assert ours < stored * (0.3 if weights == "int8" else 0.2)
    assert max(seen) < ours + 2.5 * stored / 8  # a layer is packed while the next is read
    del decoder
    pack_decoder(load_decoder(tmp_path), weights)
    assert max(seen[9:]) < 1.05 * stored  # in place: one linear layer's copy at a time


def test_packing_takes_little_memory_besides_its_result():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dtype == torch.float32 and out.untyped_storage() is not None:
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    weight = normal(4096, 1024).to(torch.bfloat16)
    for bits in (8, 4):
        with Watch():
            PackedLinear.pack(weight, None, bits)
    assert 0 < largest <= 1 << 21


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama-biased", "phi3"])
def test_a_decoder_packed_in_16_bits_is_saved_as_it_was(tmp_path, name):
    make_checkpoint(tmp_path / "from", name)
    decoder = load_decoder(tmp_path / "from", weights="bf16")
    save_decoder(decoder, tmp_path / "plain")
    save_decoder(pack_decoder(decoder, "bf16"), tmp_path / "packed")
    files = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("plain", "packed")]
    assert files[0] == files[1]
    assert json.loads((tmp_path / "packed/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_weights_are_not_saved(tmp_path, weights):
    make_checkpoint(tmp_path / "from", "llama2")
    decoder = load_decoder(tmp_path / "from", weights=weights)
    with pytest.raises(UnsupportedError, match=f"weights are {weights}, which no checkpoint holds; load it with"):
        save_decoder(decoder, tmp_path / "to")
    assert not (tmp_path / "to").exists()
