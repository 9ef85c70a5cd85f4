"""Loading, fingerprints and adapters: what changes a hash and what must not, and what is refused in which words."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.engine import adapters
from deepdoctor.engine.adapters import SELECTED_AT_MOST, adapter_hash, fresh_adapter, saved_hash, select_adapter, write_base_name
from deepdoctor.engine.fingerprint import base_hash, base_weights, checksum
from deepdoctor.engine.model import PROJECTIONS, LoadedModel, _matmul_rate, load
from deepdoctor.engine.session import Session
from deepdoctor.errors import ModelError
from deepdoctor.nano.tokenizer import EOS
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.full_disk import largest_file


def test_what_the_page_is_told_about_the_model(loaded: LoadedModel, llama: Path) -> None:
    info = loaded.info
    assert info.name == str(llama)
    assert (info.device, info.precision, info.layers, info.hidden_size, info.max_length) == ("CPU", "float32", 2, 32, tiny.CONTEXT)
    assert info.parameters == sum(weight.numel() for weight in tiny.plain(llama).parameters())
    assert info.projections["k_proj"] == (32, 16)
    assert info.projections["down_proj"] == (48, 32)
    assert (info.eos, loaded.eos_id) == (EOS, 1)
    assert info.flops > 1e6
    assert info.launch_seconds == 0
    text = "A fever.<think>"
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(info.tokenizer_file).encode(text).ids == loaded.tokenizer(text)["input_ids"]


def test_loading_says_how_far_it_is(llama: Path, tmp_path: Path) -> None:
    told: list[float] = []
    load(ModelConfig(name=str(llama)), tmp_path, lambda message, fraction: told.append(fraction or 0) if message else None)
    assert told == sorted(told)
    assert len(told) >= 3


def test_the_base_hash_survives_attaching_selecting_and_training(session: Session, adapter: Path) -> None:
    loaded = tiny.model_of(session)
    at_load = base_hash(loaded.base)
    assert at_load == loaded.info.base_hash
    select_adapter(loaded, adapter)
    assert base_hash(loaded.base) == at_load
    training = tiny.busy_training(session)
    for _ in range(3):
        next(training)
    assert base_hash(loaded.base) == at_load
    assert loaded.peft is not None
    assert base_hash(loaded.peft) == at_load


def test_one_flipped_bit_anywhere_changes_the_base_hash(loaded: LoadedModel) -> None:
    for name, weight in base_weights(loaded.base):
        bits = weight.view(torch.int32).flatten()
        bits[len(bits) // 2] ^= 1
        assert base_hash(loaded.base) != loaded.info.base_hash, name
        bits[len(bits) // 2] ^= 1
    assert base_hash(loaded.base) == loaded.info.base_hash


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_a_checksum_notices_changes_moves_and_swaps(dtype: torch.dtype) -> None:
    weight = torch.randint(1, 100, (64, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = checksum(weight)
    assert checksum(weight.clone()) == whole
    assert checksum(weight, chunk=7) != checksum(weight + 1, chunk=7)
    swapped = weight.clone()
    swapped[[0, 1]] = weight[[1, 0]]
    assert not torch.equal(swapped, weight)
    assert checksum(swapped) != whole
    assert checksum(torch.zeros_like(weight)) != whole


def test_a_checksum_of_a_view_is_that_of_its_values() -> None:
    weight = torch.arange(12.0).view(3, 4)
    assert checksum(weight.t()) == checksum(weight.t().clone())
    assert checksum(weight.t()) != checksum(weight)


def test_the_same_weights_have_the_same_hash_again(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    assert load(ModelConfig(name=str(llama)), tmp_path).info.base_hash == loaded.info.base_hash
    other = tiny.save_model(tmp_path / "other", seed=1)
    assert load(ModelConfig(name=str(other)), tmp_path).info.base_hash != loaded.info.base_hash


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed(loaded: LoadedModel) -> None:
    fresh_adapter(loaded, tiny.recipe(seed=5))
    first = adapter_hash(loaded, "default")
    fresh_adapter(loaded, tiny.recipe(seed=5))
    assert adapter_hash(loaded, "default") == first
    model = fresh_adapter(loaded, tiny.recipe(seed=6))
    assert adapter_hash(loaded, "default") != first
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trainable) == 2 * 7 * 2
    assert all("lora_" in name and ".default." in name for name in trainable)
    ids = torch.tensor([[0, 5, 9]])
    with torch.inference_mode(), model.disable_adapter():
        off = model(input_ids=ids).logits
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, off)


def test_selecting_twice_attaches_once(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    assert select_adapter(loaded, adapter) == name
    assert len(loaded.selected) == 1


def test_a_saved_adapter_s_hash_is_known_without_attaching_it(loaded: LoadedModel, adapter: Path) -> None:
    told = saved_hash(loaded, adapter)
    assert told == adapter_hash(loaded, select_adapter(loaded, adapter))
    assert told == saved_hash(loaded, adapter), "with adapters attached the modules have other names"


def test_an_adapter_that_was_written_anew_is_read_anew(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 5, 5):
        folder = tiny.save_adapter(tmp_path / "adapter", llama, seed=seed)
        name = select_adapter(loaded, folder)
        assert select_adapter(loaded, folder) == name
        hashes.append((name, adapter_hash(loaded, name)))
    (first, one), (second, other), (third, again) = hashes
    assert len({first, second, third}) == 3
    assert one != other == again


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_adapters_keep_their_own_numbers_on_a_base_of_fewer(
    loaded: LoadedModel, llama: Path, tmp_path: Path, base: torch.dtype, stored: torch.dtype
) -> None:
    loaded.base.to(base)
    for seed in (1, 2):  # the first one wraps the model, a further one joins it
        folder = tiny.save_adapter(tmp_path / str(seed), llama, seed=seed)
        weights = {key: weight.to(stored) for key, weight in load_file(folder / "adapter_model.safetensors").items()}
        save_file(weights, folder / "adapter_model.safetensors")
        name = select_adapter(loaded, folder)
        assert loaded.peft is not None
        attached = {key.replace(f".{name}", ""): weight for key, weight in loaded.peft.named_parameters() if f".{name}." in key}
        assert attached.keys() == weights.keys()
        for key, weight in attached.items():
            assert weight.dtype == torch.float32
            assert not weight.requires_grad
            assert torch.equal(weight, weights[key].float()), key


@pytest.mark.parametrize("first", [True, False])
def test_an_adapter_that_lacks_a_tensor_is_refused_and_leaves_nothing_behind(
    loaded: LoadedModel, adapter: Path, llama: Path, tmp_path: Path, first: bool
) -> None:
    if not first:
        select_adapter(loaded, adapter)
    folder = tiny.save_adapter(tmp_path / "adapter", llama, seed=3)
    weights = load_file(folder / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(weights, folder / "adapter_model.safetensors")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"in adapter is damaged: it lacks .*layers\.1\.mlp\.up_proj\.lora_B\.weight"):
            select_adapter(loaded, folder)
    require_clean(loaded, 0 if first else 1)
    proof = tiny.pair(loaded, adapter).proof
    assert proof is not None
    assert proof.problems() == []


def require_clean(loaded: LoadedModel, attached: int) -> None:
    """So many adapters are attached whole, and nothing of another one."""
    names = {name for module in loaded.base.modules() for name in getattr(module, "lora_A", ())}
    assert names == set(loaded.selected.values())
    assert len(names) == attached
    assert not any(weight.is_meta for weight in loaded.base.parameters())
    assert (loaded.peft is None) is (attached == 0)
    assert base_hash(loaded.base) == loaded.info.base_hash


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("when", ["wrapping", "reading"])
def test_memory_that_ends_while_an_adapter_is_attached_leaves_nothing_behind(
    loaded: LoadedModel, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, when: str
) -> None:
    if not first:
        select_adapter(loaded, adapter)
    folder = tiny.save_adapter(tmp_path / "adapter", loaded.folder, seed=3)
    left = tiny.StopAfter(5)

    def full(*args: Any, **more: Any) -> Any:
        if when == "reading" or left():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update_layer(*args, **more)

    update_layer = LoraLayer.update_layer
    with monkeypatch.context() as patch:
        if when == "reading":
            patch.setattr(adapters, "load_file", full)
        else:
            patch.setattr(LoraLayer, "update_layer", full)
        with pytest.raises(torch.OutOfMemoryError):
            select_adapter(loaded, folder)
    require_clean(loaded, 0 if first else 1)
    for one in (adapter, folder):
        assert tiny.pair(loaded, one).proof is not None
    require_clean(loaded, 2)


def test_an_attached_adapter_stays_when_its_file_is_written_over(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    name = select_adapter(loaded, tiny.save_adapter(tmp_path / "adapter", llama))
    before = adapter_hash(loaded, name)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-400, os.SEEK_END)
        opened.write(b"\x01" * 400)
    assert adapter_hash(loaded, name) == before


def test_the_adapter_unused_for_longest_goes(loaded: LoadedModel, llama: Path, tmp_path: Path) -> None:
    folders = [tiny.save_adapter(tmp_path / str(seed), llama, seed) for seed in range(SELECTED_AT_MOST + 2)]
    names = [select_adapter(loaded, folder) for folder in folders[:SELECTED_AT_MOST]]
    select_adapter(loaded, folders[0])
    for folder in folders[SELECTED_AT_MOST:]:
        select_adapter(loaded, folder)
    assert len(loaded.selected) == SELECTED_AT_MOST
    assert loaded.peft is not None
    assert set(loaded.peft.peft_config) == set(loaded.selected.values())
    assert names[0] in loaded.peft.peft_config
    assert not {names[1], names[2]} & set(loaded.peft.peft_config)
    comparison = tiny.pair(loaded, folders[1])
    assert comparison.proof is not None
    assert comparison.proof.problems() == []


def test_an_adapter_of_another_shape_is_refused_by_its_first_tensor(loaded: LoadedModel, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", hidden_size=48)
    folder = tiny.save_adapter(tmp_path / "adapter", other)
    with pytest.raises(
        ModelError, match=r"not trained on .*layers\.0\.mlp\.down_proj\.lora_B\.weight has shape \[48, 4\].*expects \[32, 4\]"
    ):
        select_adapter(loaded, folder)
    assert loaded.selected == {}


def test_an_adapter_with_layers_the_model_lacks_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    deeper = tiny.save_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"layers\.2\..* and the model has no model\.layers\.2\.mlp\.down_proj"):
        select_adapter(loaded, tiny.save_adapter(tmp_path / "adapter", deeper))


def test_a_damaged_or_missing_adapter_is_refused_and_the_next_one_fits(loaded: LoadedModel, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter in nowhere"):
        select_adapter(loaded, tmp_path / "nowhere")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((adapter / name).read_bytes()[: 200 if "model" in name else None])
    with pytest.raises(ModelError, match="damaged"):
        select_adapter(loaded, tmp_path)
    assert select_adapter(loaded, adapter)


def test_an_adapter_whose_ranks_disagree_is_refused_and_leaves_nothing_behind(loaded: LoadedModel, adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 9}))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"lora_A.* has shape \[4, 48\].*expects \[9, 48\]"):
            select_adapter(loaded, tmp_path)
    assert tiny.pair(loaded, adapter).proof is not None
    assert loaded.peft is not None
    assert set(loaded.peft.peft_config) == set(loaded.selected.values())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, r"down_proj\.lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"base_model\.model\.lm_head\.weight"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"base_model\.model\.lm_head\.lora_A\.weight"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens\.lora_embedding_A"),
        ({"alpha_pattern": {"q_proj": 1}}, "weighs q_proj unlike others"),
        ({"rank_pattern": {"q_proj": 2}}, r"weighs q_proj unlike others \(rank_pattern\)"),
        ({"init_lora_weights": "pissa"}, "begun from a changed base"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_of_another_kind_is_refused_by_the_tensor_that_is_not_known(
    loaded: LoadedModel, llama: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": list(PROJECTIONS), **changes})
    get_peft_model(tiny.plain(llama), config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ModelError, match=named):
        select_adapter(loaded, tmp_path)
    assert (loaded.selected, loaded.peft) == ({}, None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("[1]", "The adapter_config.json of the adapter in other cannot be read: expected names and values."),
        ('{"r": 4', "The adapter_config.json of the adapter in other cannot be read: Expecting"),
        ('{"lora_alpha": 8}', "The adapter_config.json of the adapter in other does not tell a rank (r) and a weight (lora_alpha)."),
        (
            '{"r": 4.0, "lora_alpha": 8}',
            "The adapter_config.json of the adapter in other does not tell a rank (r) and a weight (lora_alpha).",
        ),
        (
            '{"r": 4, "lora_alpha": 8}',
            "Only plain LoRA adapters can be compared in pairs, and the adapter in other is none: its type is None.",
        ),
    ],
)
def test_an_adapters_configuration_that_makes_no_sense_is_told_plainly(
    loaded: LoadedModel, adapter: Path, tmp_path: Path, config: str, told: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=f"^{re.escape(told)}"):
        select_adapter(loaded, folder)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="/no/such/model could not be loaded"):
        load(ModelConfig(name="/no/such/model"), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "not safetensors"])
def test_damaged_weights_are_told(llama: Path, tmp_path: Path, damage: str) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes({"truncated": weights.read_bytes()[:-4000], "empty": b"", "not safetensors": b"<html>" * 999}[damage])
    with pytest.raises(ModelError, match="could not be loaded"):
        load(ModelConfig(name=str(tmp_path)), tmp_path / "data")


def test_weights_that_do_not_fit_the_configuration_are_told(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ModelError, match=r"lacks model\.layers\.0\.mlp\.down_proj\.weight .*, and 5 more"):
        load(ModelConfig(name=str(tmp_path)), tmp_path / "data")


@pytest.mark.parametrize(
    "changes", [[], {"num_attention_heads": 0}, {"hidden_size": "wide"}, {"hidden_size": 33}, {"rope_parameters": 7}], ids=str
)
def test_a_configuration_that_makes_no_sense_is_told(llama: Path, tmp_path: Path, changes: Any) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes} if changes else changes))
    with pytest.raises(ModelError, match=f"The model {tmp_path} "):
        load(ModelConfig(name=str(tmp_path)), tmp_path / "data")


def without(folder: Path, llama: Path, token: str) -> Path:
    """A copy of a model whose tokenizer lacks a special token."""
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings[token]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


def test_a_tokenizer_without_padding_trains_and_compares(
    llama: Path, tmp_path: Path, dataset: DatasetConfig, trained: tuple[Any, Run]
) -> None:
    (tmp_path / "model").mkdir()
    session = tiny.open_session(tmp_path / "data", without(tmp_path / "model", llama, "pad_token"))
    run = session.finetune(tiny.new_run(session, dataset, max_steps=6, probe_steps=3, eval_steps=3).id)
    assert tiny.losses(run) == pytest.approx(tiny.losses(trained[1]), rel=1e-6), "what is padded is masked"
    assert tiny.pair(tiny.model_of(session), run.adapter_dir()).proof is not None


def test_a_tokenizer_that_cannot_end_a_text_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no token that ends a text \(eos_token\)"):
        load(ModelConfig(name=str(without(tmp_path, llama, "eos_token"))), tmp_path / "data")


def test_weights_that_lack_a_tensor_are_told(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks .*layers\.1\.mlp\.up_proj"):
        load(ModelConfig(name=str(tmp_path)), tmp_path / "data")


def test_models_without_linear_layers_are_refused_by_name(tmp_path: Path) -> None:
    tiny.save_model(tmp_path)
    AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a gpt2 model without linear layers for LoRA to adapt; choose another model"):
        load(ModelConfig(name=str(tmp_path)), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made_up"}))
    with pytest.raises(ModelError, match="could not be loaded"):
        load(ModelConfig(name=str(tmp_path)), tmp_path)


def test_four_bits_without_a_gpu_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="4-bit"):
        load(ModelConfig(name=str(llama), precision="4bit"), tmp_path)


def test_a_precision_is_obeyed(llama: Path, tmp_path: Path) -> None:
    loaded = load(ModelConfig(name=str(llama), precision="bfloat16"), tmp_path)
    assert (loaded.dtype, loaded.info.precision) == (torch.bfloat16, "bfloat16")


def test_the_base_name_is_written_into_a_saved_adapter(adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_bytes((adapter / "adapter_config.json").read_bytes())
    write_base_name(tmp_path, "owner/model")
    before, after = json.loads((adapter / "adapter_config.json").read_text()), json.loads(file.read_text())
    assert after == {**before, "base_model_name_or_path": "owner/model"}
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        write_base_name(tmp_path, "owner/other")
    assert json.loads(file.read_text()) == after


def test_a_failed_load_leaves_the_model_before(session: Session, adapter: Path) -> None:
    before = session.loaded
    with pytest.raises(ModelError):
        session.load(ModelConfig(name="/no/such/model"))
    assert session.loaded is before
    proof = tiny.pair(tiny.model_of(session), adapter).proof
    assert proof is not None
    assert replace(proof).problems() == []


def test_slow_numbers_are_not_multiplied_for_long() -> None:
    """A CPU without 16-bit arithmetic of its own takes 2 s for a product that it makes in 0.01 s in 32 bits."""
    began = time.perf_counter()
    assert _matmul_rate(torch.device("cpu"), torch.float16) > 1e8
    assert time.perf_counter() - began < 5


def test_what_else_runs_on_the_cores_does_not_count() -> None:
    cpu = torch.device("cpu")
    alone = max(_matmul_rate(cpu, torch.float32) for _ in range(3))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * torch.get_num_threads())]
    try:
        time.sleep(0.5)
        beside = _matmul_rate(cpu, torch.float32)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert beside > 0.55 * alone
