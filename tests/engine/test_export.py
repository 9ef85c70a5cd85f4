"""An export is loaded by plain transformers and plain peft, and answers as the session's tuned side does."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.core_model_loading import WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize

from deepdoctor.card import facts_of, model_card
from deepdoctor.engine.export import export, how_to_read, in_plain_numbers, must_merge, require_room
from deepdoctor.engine.fingerprint import base_hash
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.session import Session
from deepdoctor.errors import ModelError, RunError
from deepdoctor.prompts import ARTICLE, render_question
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.engine.full_disk import largest_file

QUESTION = "A patient aged 50 has thirst. What is it?"
Trained = tuple[Session, Run]


def silent(_line: str) -> None:
    """A Say for tests that do not listen."""


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    session, run = trained
    return session.export(Export(run.id), silent)


def tuned_text(trained: Trained, step: int | None = None) -> str:
    session, run = trained
    *_, made = session.compare(Compare(QUESTION, run.id, step, tiny.GREEDY))
    return made.tuned.text


def answer(model: object, folder: Path) -> str:
    """The greedy answer by nothing but transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tiny.generate(model, tokenizer(render_question(QUESTION))["input_ids"], 24)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def test_the_adapter_loads_with_plain_peft(trained: Trained, exported: Path, llama: Path) -> None:
    model = PeftModel.from_pretrained(tiny.plain(llama), exported / "adapter").eval()
    assert answer(model, exported / "tokenizer") == tuned_text(trained)
    assert answer(tiny.plain(llama), exported / "tokenizer") != tuned_text(trained)


def test_the_merged_model_loads_with_plain_transformers(trained: Trained, exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported / "merged").eval()
    assert answer(model, exported / "merged") == tuned_text(trained)
    assert model.generation_config.eos_token_id == 1


def test_a_checkpoint_can_be_exported(trained: Trained, llama: Path) -> None:
    session, run = trained
    folder = session.export(Export(run.id, step=2, merged=False), silent)
    assert folder.name == f"{run.id}-2"
    assert not (folder / "merged").exists()
    model = PeftModel.from_pretrained(tiny.plain(llama), folder / "adapter").eval()
    assert answer(model, folder / "tokenizer") == tuned_text(trained, 2)


def test_what_it_was_made_with_stands_beside_it(trained: Trained, exported: Path, llama: Path) -> None:
    session, run = trained
    assert sorted(each.name for each in exported.iterdir()) == ["adapter", "config.json", "merged", "prompt_style.json", "tokenizer"]
    assert json.loads((exported / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(llama)
    style = json.loads((exported / "prompt_style.json").read_text())
    assert (style["name"], style["prompt"]) == ("article", ARTICLE.prompt)
    config = json.loads((exported / "config.json").read_text())
    assert (config["run"], config["step"], config["model"]["name"]) == (run.id, None, str(llama))
    assert config["finetune"] == json.loads(run.finetune.to_json())
    assert config["unpacked"] is False
    assert config["base_id"] is None
    assert (config["adapter_step"], config["final"]) == (run.status["step"], True)
    *_, made = session.compare(Compare(QUESTION, run.id, sampling=tiny.GREEDY))
    assert made.proof is not None
    assert config["adapter_hash"] == made.proof.adapter_hash, "by this the card knows the comparisons made with these weights"
    assert config["base_hash"] == tiny.model_of(session).info.base_hash


def test_an_interrupted_run_s_export_says_that_it_is_of_its_newest_checkpoint(trained: Trained, tmp_path: Path) -> None:
    session, whole = trained
    run = Run(tmp_path / "runs" / "cut")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.path / "adapter")
    newest = run.checkpoints()[-1]
    run.set_status(state="interrupted", step=newest + 15)
    folder = export(tiny.model_of(session), run, Export(run.id, merged=False), tmp_path / "out", silent)
    made = json.loads((folder / "config.json").read_text())
    assert (made["step"], made["adapter_step"], made["final"]) == (None, newest, False)
    card = model_card(facts_of(run, [], "owner/m", made))
    assert f"the checkpoint at step {newest}" in card
    assert f"{newest + 15}" not in card.split("## Losses")[0]


def test_exporting_leaves_the_loaded_base_alone(trained: Trained, exported: Path) -> None:
    assert exported.exists()
    loaded = tiny.model_of(trained[0])
    assert base_hash(loaded.base) == loaded.info.base_hash


def test_what_was_made_of_the_same_adapter_is_kept_and_not_made_again(trained: Trained, tmp_path: Path) -> None:
    loaded, run, target = tiny.model_of(trained[0]), trained[1], tmp_path / "out"
    export(loaded, run, Export(run.id), target, silent)
    (target / "gguf").mkdir()
    (target / "gguf" / f"{run.id}-q8_0.gguf").write_bytes(b"GGUF")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "unpacked": True}))
    before = {file.relative_to(target): file.read_bytes() for part in ("merged", "gguf") for file in (target / part).iterdir()}
    said: list[str] = []
    for merged in (False, True):
        assert not must_merge(target, run, Export(run.id, merged=merged, gguf="q8_0"))
        export(loaded, run, Export(run.id, merged=merged), target, said.append)
    assert [line for line in said if "Merging" in line or "Removed" in line] == []
    assert {path: (target / path).read_bytes() for path in before} == before
    assert json.loads((target / "config.json").read_text())["unpacked"] is True, "what is kept is what it was"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_was_made_of_another_adapter_is_removed_and_that_is_said(trained: Trained, tmp_path: Path) -> None:
    loaded, run, target = tiny.model_of(trained[0]), trained[1], tmp_path / "out"
    export(loaded, run, Export(run.id), target, silent)
    (target / "gguf").mkdir()
    (target / "gguf" / f"{run.id}-q8_0.gguf").write_bytes(b"GGUF")
    assert must_merge(target, run, Export(run.id, step=2))
    said: list[str] = []
    export(loaded, run, Export(run.id, step=2, merged=False), target, said.append)
    assert not (target / "merged").exists()
    assert not (target / "gguf").exists()
    assert said[-1] == "Removed the merged model and the GGUF files of an earlier export: the run's adapter is another one now"
    assert said[-1] in run.log_tail()


def test_forms_of_an_export_that_does_not_say_how_it_was_made_are_not_trusted(trained: Trained, tmp_path: Path) -> None:
    loaded, run, target = tiny.model_of(trained[0]), trained[1], tmp_path / "out"
    export(loaded, run, Export(run.id), target, silent)
    (target / "config.json").write_text("no JSON")
    assert must_merge(target, run, Export(run.id))
    export(loaded, run, Export(run.id), target, silent)
    assert not must_merge(target, run, Export(run.id))


def test_only_what_is_lacking_is_made(trained: Trained, tmp_path: Path) -> None:
    loaded, run, target = tiny.model_of(trained[0]), trained[1], tmp_path / "out"
    export(loaded, run, Export(run.id, merged=False), target, silent)
    assert must_merge(target, run, Export(run.id))
    said: list[str] = []
    export(loaded, run, Export(run.id), target, said.append)
    assert [line.split()[0] for line in said] == ["Writing", "Writing", "Merging"]
    assert (target / "merged" / "config.json").exists()


def test_it_says_what_it_does(trained: Trained, tmp_path: Path) -> None:
    said: list[str] = []
    export(tiny.model_of(trained[0]), trained[1], Export(trained[1].id), tmp_path / "out", said.append)
    assert [line.split()[0] for line in said] == ["Writing", "Writing", "Merging"]


def test_a_run_without_an_adapter(session: Session, trained: Trained) -> None:
    run = session.runs.create(trained[1].model, trained[1].dataset, trained[1].finetune)
    with pytest.raises(RunError, match="no adapter"):
        session.export(Export(run.id), silent)
    with pytest.raises(RunError, match="no adapter at step 99"):
        trained[0].export(Export(trained[1].id, step=99), silent)


@pytest.mark.parametrize("blocked", ["target", "parent"])
def test_a_folder_that_cannot_be_written(trained: Trained, tmp_path: Path, blocked: str) -> None:
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" if blocked == "target" else tmp_path / "file" / "out"
    with pytest.raises(RunError, match="could not be written"):
        export(tiny.model_of(trained[0]), trained[1], Export(trained[1].id, merged=False), target, silent)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("size", [1000, 60_000])
def test_a_full_disk_leaves_the_export_before_and_nothing_half_written(trained: Trained, tmp_path: Path, size: int) -> None:
    session, run = trained
    target = tmp_path / "out"
    target.mkdir()
    (target / "before").touch()
    with largest_file(size), pytest.raises(RunError, match=r"could not be written.*Free some space"):
        export(tiny.model_of(session), run, Export(run.id), target, silent)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in target.iterdir()] == ["before"]


def test_a_base_that_has_gone_is_told_and_nothing_is_left(trained: Trained, llama: Path, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(llama, copied)
    session = tiny.open_session(tmp_path / "data", copied)
    shutil.rmtree(copied)
    with pytest.raises((RunError, ModelError)):
        export(tiny.model_of(session), trained[1], Export(trained[1].id), tmp_path / "out", silent)
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


class Packed:
    """A model as transformers holds one in 4 bits: unpacking takes the note out of its configuration, unless it `keeps` it."""

    def __init__(self, unpacks: bool = True, keeps: bool = False) -> None:
        self.config = SimpleNamespace(quantization_config={"quant_method": "bitsandbytes"})
        self.unpacks, self.keeps = unpacks, keeps
        self.dtype: torch.dtype | None = None

    def dequantize(self, dtype: torch.dtype) -> "Packed":
        if not self.unpacks:
            raise NotImplementedError("awq has no implementation of `dequantize`")
        self.dtype = dtype
        if not self.keeps:
            del self.config.quantization_config
        return self


def test_four_bit_weights_are_unpacked_before_merging() -> None:
    packed = Packed()
    assert in_plain_numbers(packed, torch.float16) is packed
    assert packed.dtype == torch.float16


def test_unpacked_weights_can_be_saved(llama: Path, tmp_path: Path) -> None:
    """What transformers read the files with cannot be turned round, which it would try to do when it saves."""
    model: Any = tiny.plain(llama)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    model._weight_conversions = [WeightConverter(["weight.absmax", "weight"], "weight", [Bnb4bitDeserialize(None)])]

    def dequantize(dtype: torch.dtype) -> Any:
        del model.config.quantization_config
        return model.to(dtype)

    model.dequantize = dequantize
    in_plain_numbers(model, torch.bfloat16).save_pretrained(tmp_path)
    again, wanted = AutoModelForCausalLM.from_pretrained(tmp_path), tiny.plain(llama).to(torch.bfloat16)
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in wanted.named_parameters())


@pytest.mark.parametrize("packed", [Packed(unpacks=False), Packed(keeps=True)], ids=["cannot", "does not"])
def test_weights_that_cannot_be_unpacked_are_not_merged_into(packed: Packed) -> None:
    with pytest.raises(RunError, match="cannot be unpacked, so nothing can be merged"):
        in_plain_numbers(packed, torch.float16)


def test_plain_weights_are_merged_into_as_they_are(llama: Path) -> None:
    model = tiny.plain(llama)
    assert in_plain_numbers(model, torch.bfloat16) is model
    assert model.dtype == torch.float32


def test_quantized_files_are_read_into_the_machine_s_memory(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    assert how_to_read(tmp_path, torch.float16) == {"dtype": torch.float16, "device_map": {"": "cpu"}}
    assert how_to_read(llama, torch.float16) == {"dtype": torch.float16}


def test_a_merge_that_the_memory_cannot_hold_is_refused_with_both_numbers(trained: Trained) -> None:
    loaded = tiny.model_of(trained[0])
    require_room(loaded, 2**30)
    with pytest.raises(RunError, match=r"about 0\.3 GiB .* only 0\.2 GiB are free"):
        require_room(loaded, 2**30 // 5)
