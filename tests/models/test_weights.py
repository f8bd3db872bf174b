"""Loading and saving: every layout of safetensors, and a clear refusal of everything else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bough.core.errors import CheckpointError, ConfigError, InvalidInput
from bough.models import Decoder, dense_attend, load_decoder, save_decoder
from checkpoints import FAMILIES, make_checkpoint

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    make_checkpoint(tmp_path, "llama2")
    return tmp_path


@pytest.fixture
def shards(tmp_path) -> Path:
    model = make_checkpoint(tmp_path / "whole", "llama2")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def same(a: Decoder, b: Decoder) -> bool:
    b_state = b.state_dict()
    return all(torch.equal(tensor, b_state[name]) for name, tensor in a.state_dict().items())


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors; dots in names are written as slashes."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("/", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_shards_load_as_one_file_does(shards):
    assert same(load_decoder(shards), load_decoder(shards.parent / "whole"))


def test_saving_over_shards_replaces_them(shards):
    decoder = load_decoder(shards)
    decoder.norm.weight.data += 1
    save_decoder(decoder, shards)
    assert same(load_decoder(shards), decoder)
    again = transformers.AutoModelForCausalLM.from_pretrained(shards)
    assert torch.equal(again.model.norm.weight, decoder.norm.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_stored_type_is_kept_unless_another_is_asked_for(tmp_path, dtype):
    model = make_checkpoint(tmp_path / "float32", "llama2")
    model.to(dtype).save_pretrained(tmp_path / "stored")
    decoder = load_decoder(tmp_path / "stored")
    assert {parameter.dtype for parameter in decoder.parameters()} == {dtype}
    assert torch.equal(decoder.embed.weight, model.get_input_embeddings().weight)
    cast = load_decoder(tmp_path / "float32", dtype=dtype)
    assert same(cast, decoder)


def test_a_loaded_decoder_is_for_inference(folder):
    decoder = load_decoder(folder)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_transformers_loads_what_is_saved(tmp_path, tokens, family):
    reference = make_checkpoint(tmp_path / "from", family)
    save_decoder(load_decoder(tmp_path / "from"), tmp_path / "to")
    assert json.loads((tmp_path / "to/config.json").read_text())["dtype"] == "float32"
    again, report = type(reference).from_pretrained(tmp_path / "to", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(tokens[None]).logits, reference(tokens[None]).logits)
    assert same(load_decoder(tmp_path / "to"), load_decoder(tmp_path / "from"))


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForProcessRewardModel"])
def test_classification_heads_are_saved_too(tmp_path, head):
    make_checkpoint(tmp_path / "from", "qwen2", head=head)
    save_decoder(load_decoder(tmp_path / "from"), tmp_path / "to")
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("from", "to"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_fresh_decoder_is_saved_in_the_format_of_transformers(tmp_path, tokens):
    make_checkpoint(tmp_path / "any", "qwen3")
    raw = json.loads((tmp_path / "any/config.json").read_text())
    decoder = Decoder.from_config(raw, seed=3)
    with torch.no_grad():
        ours = decoder.logits(decoder(tokens, torch.arange(80), dense_attend([80])).last)
        save_decoder(decoder.to(torch.bfloat16), tmp_path / "fresh")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fresh", dtype=torch.float32)
        torch.testing.assert_close(theirs(tokens[None]).logits[0], ours, rtol=0, atol=0.02)


def test_nan_is_not_saved_and_leaves_the_old_file(folder):
    decoder = load_decoder(folder)
    before = (folder / "model.safetensors").read_bytes()
    decoder.norm.weight.data[3] = float("nan")
    with pytest.raises(InvalidInput, match=r"model\.norm\.weight"):
        save_decoder(decoder, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_old_rotary_buffers_and_a_tied_duplicate_are_known(tmp_path):
    make_checkpoint(tmp_path, "smollm2")
    expected = load_decoder(tmp_path)
    embedding = expected.embed.weight.data.clone()
    edit(
        tmp_path,
        **{
            "model/layers/0/self_attn/rotary_emb/inv_freq": torch.ones(8),
            "lm_head/weight": embedding,
        },
    )
    assert same(load_decoder(tmp_path), expected)
    edit(tmp_path, **{"lm_head/weight": embedding + 1e-3})
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings, but 'lm_head\.weight' differs"):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DOWN: None}, rf"lacks tensor '{DOWN}' of shape \(64, 96\)"),
        ({"lm_head.weight": None}, "lacks tensor 'lm_head.weight'"),
        ({DOWN: torch.zeros(96, 64)}, rf"'{DOWN}' has shape \(96, 64\), but config.json implies \(64, 96\)"),
        ({"model.layers.3.mlp.down_proj.weight": torch.zeros(64, 96)}, "model.layers.3.mlp.down_proj.weight"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "q_proj.bias"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.zeros(16)}, "q_norm.weight"),
        ({"visual.patch_embed.weight": torch.zeros(4)}, "visual.patch_embed.weight"),
        ({DOWN: torch.zeros(64, 96, dtype=torch.int8)}, rf"'{DOWN}' is I8"),
        ({DOWN: torch.zeros(64, 96, dtype=torch.float64)}, rf"'{DOWN}' is F64"),
        ({DOWN: torch.zeros(64, 96, dtype=torch.bfloat16)}, rf"mixes types.*{DOWN}.*dtype="),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_decoder(folder)


def test_mixed_types_load_when_told_which_to_use(folder):
    edit(folder, **{DOWN: torch.zeros(64, 96, dtype=torch.bfloat16)})
    assert load_decoder(folder, dtype=torch.float32).embed.weight.dtype == torch.float32


def test_a_config_that_does_not_fit_its_tensors_is_refused(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2"):
        load_decoder(folder)
    edit_config(folder, num_hidden_layers=3, num_key_value_heads=1)
    with pytest.raises(CheckpointError, match=r"k_proj\.weight.*\(64, 64\).*\(16, 64\)"):
        load_decoder(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder, kept):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt or truncated"):
        load_decoder(folder)


def test_a_corrupt_header_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_decoder(folder)


@pytest.mark.parametrize("text", ["", '{"model_type": "lla', "[]", "\x00\x01"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_truncated_json_is_refused(shards, name, text):
    (shards / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        load_decoder(shards)


def test_a_missing_shard_is_named(shards):
    victim = sorted(shards.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"{victim.name} is missing"):
        load_decoder(shards)


def test_an_index_that_lies_is_refused(shards):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    path.write_text(json.dumps({**index, "weight_map": {**where, "model.ghost.weight": where[DOWN]}}))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.ghost\.weight'"):
        load_decoder(shards)
    fewer = {name: shard for name, shard in where.items() if name != DOWN}
    path.write_text(json.dumps({**index, "weight_map": fewer}))
    with pytest.raises(CheckpointError, match=DOWN):
        load_decoder(shards)
    path.write_text(json.dumps({**index, "weight_map": {**where, DOWN: "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        load_decoder(shards)
    path.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(CheckpointError, match="weight_map"):
        load_decoder(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file({**tensors, name: tensor}, second)
    with pytest.raises(CheckpointError, match=name):
        load_decoder(shards)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path(f"{self.folder}/opened"),))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_and_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    payload = Payload()
    payload.folder = folder
    (folder / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(CheckpointError, match=rf"pickles only \({name}\).*convert"):
        load_decoder(folder)
    assert not (folder / "opened").exists()


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_decoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_decoder(folder)


def test_an_unknown_architecture_is_refused_before_any_weight_is_read(folder):
    edit_config(folder, architectures=["FalconForCausalLM"], model_type="falcon")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="FalconForCausalLM"):
        load_decoder(folder)


def test_the_hub_is_asked_for_safetensors_and_text_only(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, *, revision, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert same(load_decoder("someone/model"), load_decoder(folder))
    assert asked["name"] == "someone/model"
    assert "config.json" in asked["patterns"] and "model-*.safetensors" in asked["patterns"]
    assert all(pattern.endswith((".json", ".jinja", ".safetensors")) for pattern in asked["patterns"])


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no/such/folder"):
        load_decoder(tmp_path / "no/such/folder")
    with pytest.raises(CheckpointError, match=r"someone/absent.*could not be downloaded"):
        load_decoder("someone/absent")  # the tests are offline
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="neither a folder"):
        load_decoder(file)
