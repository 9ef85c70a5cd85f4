"""An export goes to the Hub and comes back: the real client against a loopback Hub, whole, resumed, and refused where it must be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepdoctor.cli import main
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, ModelConfig
from deepdoctor.dataset import held_out_examples
from deepdoctor.download import fetch_model
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.session import Session
from deepdoctor.engine.source import EMBEDDED_FOLDER
from deepdoctor.errors import ConfigError, DeepDoctorError, RunError
from deepdoctor.prompts import render_question
from deepdoctor.publish import Destination, exported, publish, push_run
from deepdoctor.runs import Run, Runs
from tests.engine import tiny
from tests.loopback_hub import LoopbackHub
from tests.made_export import WEIGHTS, export_of

BASE = "unsloth/DeepSeek-R1-Distill-Llama-8B"


def silent(_line: str) -> None:
    """A Say for tests that do not listen."""


def unheard(_words: str, _fraction: float | None) -> None:
    """A Report for tests that do not listen."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of the 8B model, without any weights."""
    made = Runs(tmp_path / "data").create(ModelConfig(name=BASE), DatasetConfig(source="hub"), tiny.recipe(), "first")
    made.append_metric({"step": 1, "loss": 1.9, "held_out_loss": 2.0})
    made.set_status(state="finished", step=1, rows=9)
    return made


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """What an export of it looks like, with cards."""
    return export_of(run, tmp_path / "export")


@pytest.fixture
def token(loopback_hub: LoopbackHub) -> str:
    """A token of the user doctor, who also writes for clinic."""
    return loopback_hub.add_user("doctor", "clinic")


def test_adapter_and_merged_model_get_their_own_private_repositories(loopback_hub: LoopbackHub, token: str, folder: Path, run: Run) -> None:
    said: list[str] = []
    assert publish(folder, Destination("clinic/Llama-x"), token=token, say=said.append) == f"{loopback_hub.url}/clinic/Llama-x"
    adapter, merged = loopback_hub.files("clinic/Llama-x"), loopback_hub.files("clinic/Llama-x-merged")
    beside = {"README.md", "NOTICE", "loss.png", "prompt_style.json", "deepdoctor.json"}
    assert adapter.keys() == {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", *beside}
    assert merged.keys() == {"model.safetensors", "config.json", *beside}
    assert (adapter["adapter_model.safetensors"], merged["model.safetensors"]) == (WEIGHTS, WEIGHTS * 2)
    assert json.loads(adapter["deepdoctor.json"]) == {"run": run.id, "step": None}
    assert all(loopback_hub.repos["model", name].private for name in ("clinic/Llama-x", "clinic/Llama-x-merged"))
    assert said == ["Uploading the adapter to clinic/Llama-x", "Uploading the merged model to clinic/Llama-x-merged"]


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_merged_models_card_says_if_its_weights_were_unpacked_from_4_bits(
    unpacked: bool, loopback_hub: LoopbackHub, token: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    data_dir = run.path.parents[1]
    made = export_of(run, data_dir / "exports" / run.id)
    shutil.copytree(made / "adapter", run.path / "adapter")
    (run.path / "adapter" / "complete.json").write_text('{"step": 1}')
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "unpacked": unpacked}))
    push_run(data_dir, Export(run.id), Destination("doctor/Llama-x"), lambda: made, silent)
    for name, told in {"doctor/Llama-x": False, "doctor/Llama-x-merged": unpacked}.items():
        assert ("unpacked" in loopback_hub.files(name)["README.md"].decode()) == told


def test_no_local_path_leaves_the_machine(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    adapter = loopback_hub.files("doctor/Llama-x")
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert ModelCard(adapter["README.md"].decode()).data.base_model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    everything = b"".join(content for name in ("doctor/Llama-x", "doctor/Llama-x-merged") for content in loopback_hub.files(name).values())
    assert b"jane" not in everything
    assert str(folder.parent).encode() not in everything
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "/home/jane/model"


def test_public_only_if_asked_for(loopback_hub: LoopbackHub, token: str, run: Run, tmp_path: Path) -> None:
    publish(export_of(run, tmp_path / "out", merged=False), Destination("doctor/Llama-x", private=False), token=token, say=silent)
    assert not loopback_hub.repos["model", "doctor/Llama-x"].private
    assert ("model", "doctor/Llama-x-merged") not in loopback_hub.repos


def test_a_connection_cut_in_the_middle_of_an_upload_is_tried_again(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    loopback_hub.faults["cut_upload"] = 1
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert loopback_hub.files("doctor/Llama-x")["adapter_model.safetensors"] == WEIGHTS


def test_a_lost_answer_is_asked_for_again_and_nothing_is_sent_twice(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    (folder / "adapter" / "README.md").write_text("---\nlicense: mit\n---\n# Other")
    commits = len(loopback_hub.repos["model", "doctor/Llama-x"].commits)
    sent = loopback_hub.asked("^PUT /lfs")
    loopback_hub.requests.clear()
    loopback_hub.faults["lose_commit_answer"] = 1
    said: list[str] = []
    publish(folder, Destination("doctor/Llama-x"), token=token, say=said.append)
    assert sent == 3  # two weights and one picture, which both repositories share
    assert loopback_hub.asked("^PUT /lfs") == 0
    assert len(loopback_hub.repos["model", "doctor/Llama-x"].commits) == commits + 1
    assert any("trying again (2 of 3)" in line for line in said)


def test_an_upload_that_was_given_up_goes_on_where_it_stopped(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS * 3)
    loopback_hub.requests.clear()
    loopback_hub.faults["refuse_commit"] = 1
    with pytest.raises(RunError, match=r"HTTP 403: Private repository storage limit reached"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert loopback_hub.files("doctor/Llama-x")["adapter_model.safetensors"] == WEIGHTS
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert loopback_hub.files("doctor/Llama-x")["adapter_model.safetensors"] == WEIGHTS * 3
    assert loopback_hub.asked("^PUT /lfs") == 1


REFUSED: dict[str, tuple[str, str | None, type[DeepDoctorError], str]] = {
    "no token": (
        "doctor/Llama-x",
        None,
        RunError,
        "Publishing needs a token that may write: make one at https://huggingface.co/settings/tokens",
    ),
    "wrong token": ("doctor/Llama-x", "hf_wrong", RunError, "does not know this token"),
    "read token": ("reader/Llama-x", "hf_reader_read", RunError, "may only read"),
    "not the owner": ("somebody/Llama-x", "hf_doctor_write", RunError, "no right to write to somebody. Choose among: doctor, clinic"),
    "no owner": ("Llama-x", "hf_doctor_write", ConfigError, "Expected owner/name"),
    "no name": ("doctor/Llama x", "hf_doctor_write", ConfigError, "Expected owner/name"),
    "not named after Llama": ("doctor/medical", "hf_doctor_write", ConfigError, "doctor/Llama-medical"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_published_is_refused_before_anything_is_made(name: str, loopback_hub: LoopbackHub, folder: Path) -> None:
    repo, token, kind, words = REFUSED[name]
    loopback_hub.add_user("doctor", "clinic")
    loopback_hub.add_user("reader", role="read")
    with pytest.raises(kind, match=words):
        publish(folder, Destination(repo), token=token, say=silent)
    assert not loopback_hub.repos


def test_no_network(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    loopback_hub.stop()
    with pytest.raises(RunError, match=r"could not be reached.*What is on disk is kept"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)


def test_a_repository_with_other_content_is_left_alone_unless_told(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    loopback_hub.add_repo("doctor/Llama-x-merged", {"adapter_model.safetensors": b"mine", "notes.txt": b"mine"}, private=True)
    with pytest.raises(RunError, match="doctor/Llama-x-merged has other content already"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert loopback_hub.files("doctor/Llama-x-merged") == {"adapter_model.safetensors": b"mine", "notes.txt": b"mine"}
    assert loopback_hub.asked("^PUT /lfs") == 0
    publish(folder, Destination("doctor/Llama-x", overwrite=True), token=token, say=silent)
    assert "notes.txt" not in loopback_hub.files("doctor/Llama-x-merged")
    assert loopback_hub.files("doctor/Llama-x-merged")["model.safetensors"] == WEIGHTS * 2


@pytest.mark.parametrize("mark", [b"not json", b'{"run": "another", "step": null}'])
def test_another_adapters_repository_is_other_content(mark: bytes, loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    loopback_hub.add_repo("doctor/Llama-x", {"deepdoctor.json": mark}, private=True)
    with pytest.raises(RunError, match="has other content already"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)


def test_an_empty_repository_made_by_hand_will_do(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    loopback_hub.add_repo("doctor/Llama-x", private=True)
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert "README.md" in loopback_hub.files("doctor/Llama-x")


@pytest.mark.usefixtures("loopback_hub")
def test_what_is_to_be_private_does_not_go_into_a_public_repository(token: str, folder: Path) -> None:
    publish(folder, Destination("doctor/Llama-x", private=False), token=token, say=silent)
    with pytest.raises(RunError, match=r"is public already\. Publish it as public"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)


@pytest.mark.usefixtures("loopback_hub")
def test_what_is_to_be_public_does_not_stay_private_unsaid(token: str, folder: Path) -> None:
    publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    with pytest.raises(RunError, match=r"is private already\. Publish it as private, or make it public"):
        publish(folder, Destination("doctor/Llama-x", private=False), token=token, say=silent)


def test_nothing_is_published_without_a_card(loopback_hub: LoopbackHub, token: str, folder: Path) -> None:
    (folder / "merged" / "README.md").unlink()
    with pytest.raises(RunError, match="no model card"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)
    assert not loopback_hub.repos


@pytest.mark.usefixtures("loopback_hub")
def test_a_card_that_the_hub_refuses_is_told(token: str, folder: Path) -> None:
    (folder / "adapter" / "README.md").write_text("---\nlicense: mine\n---\n# A card")
    with pytest.raises(RunError, match=r"could not be written.*Invalid metadata.*license"):
        publish(folder, Destination("doctor/Llama-x"), token=token, say=silent)


@pytest.mark.parametrize(
    ("there", "merged", "changed", "whole"),
    [(True, True, False, True), (True, False, False, True), (False, True, False, False), (True, True, True, False)],
)
def test_an_export_is_made_again_only_if_it_lacks_what_is_wanted(there: bool, merged: bool, changed: bool, whole: bool, run: Run) -> None:
    data_dir = run.path.parent.parent
    export_of(run, data_dir / "exports" / run.id, there)
    adapter = run.path / "adapter"
    adapter.mkdir()
    (adapter / "complete.json").write_text('{"step": 1}')
    (adapter / "adapter_model.safetensors").write_bytes(b"trained on" if changed else WEIGHTS)
    found = exported(data_dir, run, Export(run.id, merged=merged))
    assert found == (data_dir / "exports" / run.id if whole else None)
    (data_dir / "exports" / run.id / "config.json").write_text("no JSON")
    assert exported(data_dir, run, Export(run.id, merged=merged)) is None


def test_a_merged_model_that_lies_there_is_neither_removed_nor_pushed_unasked(
    loopback_hub: LoopbackHub, token: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    made = export_of(run, run.path.parents[1] / "exports" / run.id)
    shutil.copytree(made / "adapter", run.path / "adapter")
    (run.path / "adapter" / "complete.json").write_text('{"step": 1}')

    def unasked() -> Path:
        raise AssertionError("all that is wanted lies there")

    urls = push_run(run.path.parents[1], Export(run.id, merged=False), Destination("doctor/Llama-x"), unasked, silent)
    assert urls == [f"{loopback_hub.url}/doctor/Llama-x"]
    assert loopback_hub.repos.keys() == {("model", "doctor/Llama-x")}
    assert (made / "merged" / "model.safetensors").read_bytes() == WEIGHTS * 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Run]:
    """A session with the embedded model, and a run of some steps."""
    torch.set_num_threads(1)
    session = Session(tmp_path_factory.mktemp("data"))
    session.load(ModelConfig())
    run = tiny.new_run(session, DatasetConfig(first_rows=20), max_steps=8, learning_rate=0.03, batch_size=2)
    return session, session.finetune(run.id)


def test_pushed_pulled_and_loaded_it_answers_as_before(
    trained: tuple[Session, Run], loopback_hub: LoopbackHub, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session, run = trained
    question = held_out_examples()[0].example.question
    *_, before = session.compare(Compare(question, run.id, sampling=tiny.GREEDY))
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", run.id, "--repo", "clinic/nano-medical", "--json", "--data-dir", str(session.data_dir)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["urls"] == [f"{loopback_hub.url}/clinic/nano-medical", f"{loopback_hub.url}/clinic/nano-medical-merged"]
    assert question in loopback_hub.files("clinic/nano-medical")["README.md"].decode()
    adapter, merged = (fetch_model(name, None, unheard, token) for name in ("clinic/nano-medical", "clinic/nano-medical-merged"))
    base: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    models = {adapter: PeftModel.from_pretrained(base, adapter), merged: AutoModelForCausalLM.from_pretrained(merged)}
    for folder, model in models.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = tiny.generate(model.eval(), tokenizer(render_question(question))["input_ids"], tiny.GREEDY.max_new_tokens)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == before.tuned.text
    assert before.tuned.text != before.base.text


def test_the_command_refuses_before_the_model_is_loaded(
    trained: tuple[Session, Run], loopback_hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    session, run = trained
    assert run.model.name == EMBEDDED_MODEL
    assert main(["push", run.id, "--repo", "doctor/x", "--data-dir", str(session.data_dir)]) == 2
    told = capsys.readouterr().err
    assert "Publishing needs a token" in told
    assert "Loading the model" not in told
    assert not loopback_hub.repos
