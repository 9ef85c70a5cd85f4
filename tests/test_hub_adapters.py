"""Adapters of the Hub, with the real client against a loopback Hub: fetched, kept, compared like a run's own, and refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deepdoctor.cli import main
from deepdoctor.config import DatasetConfig, ModelConfig
from deepdoctor.dataset import held_out_examples
from deepdoctor.engine.protocol import Compare, Export
from deepdoctor.engine.session import Session
from deepdoctor.errors import ModelError
from deepdoctor.hub_adapters import HubAdapters
from deepdoctor.publish import Destination, push_run
from deepdoctor.runs import Run
from tests.engine import tiny
from tests.loopback_hub import LoopbackHub
from tests.made_export import adapter_files


def unheard(_words: str, _fraction: float | None) -> None:
    """A Report for tests that do not listen."""


@pytest.fixture
def adapters(tmp_path: Path) -> HubAdapters:
    return HubAdapters(tmp_path / "data")


def test_it_is_kept_under_its_commit_and_fetched_once(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    repo = loopback_hub.add_repo("owner/lora", adapter_files())
    told: list[str] = []
    found = adapters.fetch(" owner/lora ", "", lambda words, _fraction: told.append(words))
    assert found.id == f"hub--owner--lora--{repo.commits[-1].id[:12]}"
    assert {file.name for file in found.path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "hub.json"}
    assert found.about == {"repo": "owner/lora", "revision": repo.commits[-1].id, "base": "owner/base"}
    assert (found.name, adapters.list(), adapters.get(found.id)) == ("owner/lora (Hub)", [found], found)
    assert told[0] == "Looking for owner/lora on the Hub"
    asked = loopback_hub.asked("/resolve/")
    assert adapters.fetch("owner/lora", repo.commits[-1].id, unheard) == found
    assert loopback_hub.asked("/resolve/") == asked
    assert list(adapters.root.iterdir()) == [found.path], "nothing is left aside"


def test_of_its_configuration_only_plain_lora_is_kept(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo(
        "owner/lora", adapter_files(megatron_core="evil.module", auto_mapping={"parent_library": "evil"}, target_modules=".*")
    )
    kept = json.loads((adapters.fetch("owner/lora", "", unheard).path / "adapter_config.json").read_text())
    assert kept["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert not {"megatron_core", "auto_mapping", "base_model_name_or_path"} & kept.keys()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "its type is IA3"),
        ({"use_dora": True}, "use_dora is on"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is set"),
        ({"bias": "all"}, "it trains biases"),
        ({"init_lora_weights": "pissa"}, "begun from a changed base"),
        ({"r": "8"}, "does not tell a rank"),
    ],
)
def test_other_kinds_are_refused(config: dict[str, Any], words: str, loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files(**config))
    with pytest.raises(ModelError, match=words):
        adapters.fetch("owner/lora", "", unheard)
    assert adapters.list() == []


def test_what_is_no_adapter_is_told(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo("owner/model", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(ModelError, match=r"no adapter_config\.json and no adapter_model\.safetensors"):
        adapters.fetch("owner/model", "", unheard)
    loopback_hub.add_repo("owner/broken", adapter_files() | {"adapter_model.safetensors": b"\xff" * 20})
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        adapters.fetch("owner/broken", "", unheard)
    huge = loopback_hub.add_repo("owner/huge", adapter_files())
    loopback_hub.declare(huge, "adapter_model.safetensors", 9 * 10**9)
    with pytest.raises(ModelError, match=r"larger than any LoRA adapter should be \(9\.0 GB\)"):
        adapters.fetch("owner/huge", "", unheard)
    loopback_hub.add_repo("owner/gated", adapter_files(), gated=True)
    for name, revision, words in [
        ("owner/nothing", "", "There is no model owner/nothing"),
        ("not a name", "", "Expected owner/name"),
        ("owner/broken", "old", "has no revision 'old'"),
        ("owner/gated", "", "is gated"),
    ]:
        with pytest.raises(ModelError, match=words):
            adapters.fetch(name, revision, unheard)


def test_no_network(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.stop()
    with pytest.raises(ModelError, match="could not be reached"):
        adapters.fetch("owner/model", "", unheard)


@pytest.mark.parametrize("name", ["hub--../..--x--0123456789ab", "hub--a--b--0123456789ab", "../hub--a--b--0123456789ab"])
def test_an_id_is_no_path(name: str, adapters: HubAdapters) -> None:
    with pytest.raises(ModelError, match="There is no adapter"):
        adapters.get(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Run]:
    """A session with the embedded model, and a run of some steps."""
    torch.set_num_threads(1)
    session = Session(tmp_path_factory.mktemp("data"))
    session.load(ModelConfig())
    run = tiny.new_run(session, DatasetConfig(first_rows=20), max_steps=8, learning_rate=0.03, batch_size=2)
    return session, session.finetune(run.id)


def test_pushed_and_fetched_it_answers_as_the_runs_own_and_is_proven(
    trained: tuple[Session, Run], loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, run = trained
    monkeypatch.setenv("HF_TOKEN", loopback_hub.add_user("doctor"))
    wanted = Export(run.id, merged=False)
    push_run(session.data_dir, wanted, Destination("doctor/nano"), lambda: session.export(wanted), lambda _line: None)
    found = HubAdapters(session.data_dir).fetch("doctor/nano", "", unheard)
    base = tiny.model_of(session).base
    question = held_out_examples()[0].example.question
    *_, own = session.compare(Compare(question, run.id, sampling=tiny.GREEDY))
    *_, made = session.compare(Compare(question, found.id, sampling=tiny.GREEDY))
    assert tiny.model_of(session).base is base, "nothing was loaded again"
    assert (made.base.text, made.tuned.text) == (own.base.text, own.tuned.text)
    assert made.tuned.text != made.base.text
    assert made.proof is not None
    assert own.proof is not None
    assert made.proof.problems() == []
    assert made.proof.adapter_hash == own.proof.adapter_hash
    assert (made.run, made.step, made.seen) == (found.id, None, {"grade": "unknown"})
    assert session.comparisons.get(made.id) == made


def test_one_that_does_not_fit_is_refused_by_its_first_tensor(
    trained: tuple[Session, Run], loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    session, _run = trained
    folder = tiny.save_adapter(tmp_path / "adapter", tiny.save_model(tmp_path / "llama"))
    loopback_hub.add_repo("owner/other", {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
    found = HubAdapters(session.data_dir).fetch("owner/other", "", unheard)
    with pytest.raises(ModelError, match=r"was not trained on nano: base_model\.model\.\S+\.weight has shape"):
        next(session.compare(Compare("Why?", found.id, sampling=tiny.GREEDY)))
    shutil.rmtree(found.path)


def compared(capsys: pytest.CaptureFixture[str], session: Session, adapter: str | Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, JSON on stdout, stderr) of `compare --adapter`, greedily, with the first held-out question."""
    arguments = ["--held-out", "1", "--temperature", "0", "--max-new-tokens", "24", "--data-dir", str(session.data_dir), "--json"]
    code = main(["compare", "--adapter", str(adapter), *arguments, *more])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_from_the_command_line_it_answers_as_the_runs_own_whether_of_the_hub_or_in_a_folder(
    trained: tuple[Session, Run], loopback_hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    session, run = trained
    *_, own = session.compare(Compare(held_out_examples()[0].example.question, run.id, sampling=tiny.GREEDY))
    folder = run.adapter_dir()
    loopback_hub.add_repo("doctor/command", {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
    code, made, told = compared(capsys, session, "doctor/command")
    assert code == 0
    assert "Looking for doctor/command on the Hub" in told
    assert (made["base"]["text"], made["tuned"]["text"], made["proof"]["problems"]) == (own.base.text, own.tuned.text, [])
    loopback_hub.stop()
    assert compared(capsys, session, "Doctor/Command")[1]["run"] == made["run"], "it is here already"
    _code, local, told = compared(capsys, session, folder)
    assert (local["tuned"]["text"], local["run"], local["seen"]) == (own.tuned.text, "folder--adapter", {"grade": "unknown"})
    assert session.comparisons.get(local["id"]).run == "folder--adapter"
    assert compared(capsys, session, folder, "--step", "2")[1]["error"].endswith("has no checkpoints.")


def test_from_the_command_line_one_that_does_not_fit_is_refused_by_its_first_tensor(
    trained: tuple[Session, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.save_adapter(tmp_path / "adapter", tiny.save_model(tmp_path / "llama"))
    code, value, told = compared(capsys, trained[0], folder)
    assert code == 2
    assert re.search(r"was not trained on nano: base_model\.model\.\S+\.weight has shape", value["error"])
    assert f"says that it was made for {tmp_path}"[:40] in told


def test_a_removed_one_is_gone_as_a_whole_and_can_be_fetched_again(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files())
    found = adapters.fetch("owner/lora", "", unheard)
    adapters.remove(found.id)
    assert (adapters.list(), list(adapters.root.iterdir())) == ([], [])
    with pytest.raises(ModelError, match="There is no adapter"):
        adapters.remove(found.id)
    with pytest.raises(ModelError, match="There is no adapter"):
        adapters.remove("../adapters")
    assert adapters.fetch("owner/lora", "", unheard) == found


def test_one_that_is_removed_while_it_answers_answers_to_the_end(trained: tuple[Session, Run], loopback_hub: LoopbackHub) -> None:
    session, run = trained
    loopback_hub.add_repo("doctor/short", {file.name: file.read_bytes() for file in run.adapter_dir().iterdir() if file.is_file()})
    adapters = HubAdapters(session.data_dir)
    found = adapters.fetch("doctor/short", "", unheard)
    pair = session.begin(Compare("Why?", found.id, sampling=tiny.GREEDY))
    session.step()
    adapters.remove(found.id)
    while not pair.finished:
        session.step()
        pair.prove()
    made = session.finish(pair)
    assert (made.run, made.seen, made.finished) == (found.id, {"grade": "unknown"}, True)


def test_another_base_is_told(loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files(base_model_name_or_path="unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit"))
    found = adapters.fetch("owner/lora", "", unheard)
    assert "made for unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit, not for nano" in found.made_for_another("nano")
    assert found.made_for_another("deepseek-ai/DeepSeek-R1-Distill-Llama-8B") == ""


@pytest.mark.parametrize("named", ["unsloth/deepseek-r1-distill-llama-8b-unsloth-bnb-4bit", "deepseek-ai/deepseek-r1-distill-llama-8b"])
def test_a_base_in_lower_case_is_the_same(named: str, loopback_hub: LoopbackHub, adapters: HubAdapters) -> None:
    loopback_hub.add_repo("owner/lora", adapter_files(base_model_name_or_path=named))
    assert adapters.fetch("owner/lora", "", unheard).made_for_another("unsloth/DeepSeek-R1-Distill-Llama-8B") == ""
