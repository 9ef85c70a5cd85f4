"""The model card: valid metadata with the base's own id, everything a reader must know, and no text that breaks out of its box."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, ModelCard, close_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from markdown_it import MarkdownIt

from deepdoctor.card import CardFacts, facts_of, fenced, model_card, plain, write_cards
from deepdoctor.comparison import Comparison, Transcript
from deepdoctor.config import DatasetConfig, ModelConfig, SamplingConfig, preset
from deepdoctor.origins import real_id
from deepdoctor.proof import Proof
from deepdoctor.runs import Run, Runs
from tests.loopback_hub import LoopbackHub

BASE = "unsloth/DeepSeek-R1-Distill-Llama-8B"
OWN = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
HUB = DatasetConfig(source="hub")
CURVE: tuple[dict[str, Any], ...] = (
    {"step": 0, "held_out_loss": 2.2511},
    {"step": 1, "loss": 1.9188},
    {"step": 60, "loss": 1.314, "held_out_loss": 1.4142},
)
PROOF = Proof(1e-6, 2e-6, 3.5, 0.6, 0.6, 1e-3, "a", "a", "b", "c")
EVIL = (
    "```\n</code></pre><script>alert(1)</script>\n````\n# Heading ![x](http://evil.example/x.png)\n~~~\n---\nlicense: mit\n---\r```\r# More"
)


def compared(question: str = "What is it?", answer: str = "An infection.", grade: str = "unseen", **changes: Any) -> Comparison:
    base = Transcript("A long thought", tokens=60, reasoning_tokens=60, seconds=1.0, finish_reason="length")
    tuned = Transcript(f"Short.\n</think>\n{answer}", tokens=9, reasoning_tokens=3, seconds=0.5, finish_reason="stop")
    made = Comparison(question, base, tuned, SamplingConfig(), "article", BASE, "r1", proof=PROOF, seen={"grade": grade})
    return replace(made, **changes)


FACTS = CardFacts(
    repo="owner/Llama-medical",
    run="20261122-180000-abcd",
    model=ModelConfig(name=BASE, revision="0123abc", precision="4bit"),
    base_id=OWN,
    final=True,
    steps=60,
    planned=60,
    rows=476,
    precision="4bit",
    dataset=HUB,
    recipe=preset("article"),
    curve=CURVE,
    examples=(compared(reference="The reference."),),
)


def test_the_card_says_in_which_numbers_the_base_really_was(tmp_path: Path) -> None:
    run = Runs(tmp_path).create(ModelConfig(), DatasetConfig(), preset("quick"))
    run.set_status(state="finished", step=30, rows=476)
    assert "| Precision of the base | auto |" in model_card(facts_of(run, [], "owner/m", made(60))), "all that runs of before have to say"
    run.set_status(precision="4bit")
    assert "| Precision of the base | 4bit |" in model_card(facts_of(run, [], "owner/m", made(60)))


def made(step: int, final: bool = True, **more: Any) -> dict[str, Any]:
    """What an export keeps of how it was made, as far as the card asks."""
    return {"adapter_step": step, "final": final, "adapter_hash": PROOF.adapter_hash, "unpacked": False, "base_id": OWN, **more}


def html(markdown: str) -> str:
    """The card as a site shows it that lets raw HTML through."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown.split("\n---\n", 1)[1])


def test_the_metadata_of_an_adapter() -> None:
    assert ModelCard(model_card(FACTS)).data.to_dict() == {
        "base_model": OWN,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "llama3.1",
        "language": "en",
        "datasets": ["FreedomIntelligence/medical-o1-reasoning-SFT"],
        "tags": ["deepdoctor", "lora", "medical", "reasoning", "research-demo"],
    }


def test_the_metadata_of_a_merged_model() -> None:
    data = ModelCard(model_card(FACTS, merged=True)).data
    assert (data.base_model, data["base_model_relation"], data.library_name) == (OWN, "finetune", "transformers")


def test_the_dataset_s_licence_is_told_where_it_is_known() -> None:
    assert "The dataset FreedomIntelligence/medical-o1-reasoning-SFT is under Apache-2.0." in model_card(replace(FACTS, dataset=HUB))
    other = replace(FACTS, dataset=DatasetConfig(source="hub", name="someone/cases"))
    assert "The dataset someone/cases has a licence of its own: see its page." in model_card(other)


@pytest.mark.parametrize(
    ("base", "license_id"),
    [
        ("nano", "apache-2.0"),
        ("unsloth/DeepSeek-R1-Distill-Qwen-7B", "mit"),
        ("deepcogito/cogito-v1-preview-llama-8B", "other"),
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("/models/any", "other"),
    ],
)
def test_the_licence_follows_the_base(base: str, license_id: str) -> None:
    card = ModelCard(model_card(replace(FACTS, model=ModelConfig(name=base), base_id=real_id(base))))
    assert card.data.license == license_id
    assert "Built with Llama" not in card.text
    assert ("look it up" in card.text) == (license_id == "other")


@pytest.mark.parametrize("base", ["nano", "/home/jane/models/secret"])
def test_a_base_that_is_not_on_the_hub_has_no_id_and_its_path_stays_private(base: str) -> None:
    card = ModelCard(
        model_card(
            replace(FACTS, model=ModelConfig(name=base), base_id=None, dataset=DatasetConfig(source="file", path="/home/jane/rows.json"))
        )
    )
    assert "base_model" not in card.data.to_dict()
    assert "base_model_relation" not in card.data.to_dict()
    assert "no id on the Hub" in card.text
    assert "rows.json" in card.text
    assert "jane" not in card.text


@pytest.mark.parametrize(
    "facts", [FACTS, replace(FACTS, model=ModelConfig(), base_id=None, dataset=DatasetConfig(), examples=(), curve=())]
)
@pytest.mark.parametrize("merged", [False, True])
def test_the_hub_accepts_the_metadata(facts: CardFacts, merged: bool, loopback_hub: LoopbackHub) -> None:
    HfApi(endpoint=loopback_hub.url)._validate_yaml(model_card(facts, merged), token=False)
    # ModelCard.validate knows one address only: let that address lead to the loopback Hub
    loopback = httpx.HTTPTransport()

    class Redirected(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=int(loopback_hub.url.rsplit(":", 1)[1]))
            return loopback.handle_request(request)

    set_client_factory(lambda: httpx.Client(transport=Redirected()))
    try:
        ModelCard(model_card(facts, merged)).validate()
        with pytest.raises(ValueError, match="base_model"):
            ModelCard("---\nbase_model: /home/me/model\n---\n").validate()
    finally:
        set_client_factory(default_client_factory)
        close_session()
        loopback.close()
    assert loopback_hub.asked("POST /api/validate-yaml") == 3


def test_it_tells_what_a_reader_must_know() -> None:
    text = ModelCard(model_card(FACTS)).text
    for said in (
        "# Llama-medical",
        "Not a medical device",
        "**Built with Llama**",
        "trained for 60 steps",
        f"[{OWN}](https://huggingface.co/{OWN}), taken from {BASE}, revision 0123abc",
        "476 rows of [FreedomIntelligence/medical-o1-reasoning-SFT]",
        "revision fc2c9e8a37b38f38da6d449564a8c350b244aef4, out of its first 500",
        "| held-out, 24 rows | 2.2511 (step 0) | 1.4142 (step 60) |",
        "| training | 1.9188 (step 1) | 1.3140 (step 60) |",
        "![Training and held-out loss against the step](loss.png)",
        "| Precision of the base | 4bit |",
        "| LoRA rank | 16 |",
        "| Learning rate | 0.0002 |",
        "unseen in training; temperature 0.6, seed 3407",
        "No answer: the thought was never closed.",
        "The reference.",
        "No clinical validation",
        "No correctness was measured",
        "Style is not correctness",
        "Not for diagnosis",
        "MIT licence",
        "Llama 3.1 Community License, Copyright © Meta Platforms",
        'PeftModel.from_pretrained(base, "owner/Llama-medical")',
    ):
        assert said in text, said


def test_every_setting_that_shapes_training_is_in_the_recipe() -> None:
    text = model_card(FACTS)
    for name, field in type(FACTS.recipe).model_fields.items():
        assert (f"| {plain(field.title)} |" in text) == (not name.startswith(("probe_", "wandb"))), name


@pytest.mark.parametrize("text", [EVIL, "`" * 20, "ends in a fence\n```", "\r```\r<b>", "&lt;b&gt; <b>"])
def test_text_of_models_and_people_stays_text(text: str) -> None:
    evil = compared(question=text, answer=text, reference=text, grade=text)
    clean = html(model_card(replace(FACTS, examples=(compared(question="q", answer="a", reference="r", grade="unseen"),))))
    shown = html(model_card(replace(FACTS, examples=(evil,), run=text, dataset=DatasetConfig(source="file", path=text))))
    for tag in ("<script", "<b>", "<img", "<hr", "<h1", "<h2", "<h3", "<pre", "</pre>"):
        assert shown.count(tag) == clean.count(tag), tag
    assert ModelCard(model_card(replace(FACTS, examples=(evil,)))).data.license == "llama3.1"


def test_a_long_answer_is_cut() -> None:
    assert "word … (cut here)" in fenced("word " * 1000, 100)
    assert len(fenced("word " * 1000, 100)) < 140


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run with a checkpoint's worth of curve before its end."""
    run = Runs(tmp_path).create(ModelConfig(name=BASE, revision="0123abc"), HUB, preset("article"), "first")
    for row in CURVE:
        run.append_metric(row)
    run.set_status(state="finished", step=60, rows=476)
    return run


def test_facts_come_from_the_run(run: Run) -> None:
    facts = facts_of(run, [], "owner/Llama-x", made(60))
    assert (facts.model.name, facts.base_id, facts.steps, facts.rows, facts.dataset) == (BASE, OWN, 60, 476, HUB)
    assert [row["step"] for row in facts.curve] == [0, 1, 60]
    at_checkpoint = facts_of(run, [], "owner/Llama-x", made(20, final=False))
    assert (at_checkpoint.steps, [row["step"] for row in at_checkpoint.curve]) == (20, [0, 1])


def test_a_quantized_copy_whose_original_is_not_known_is_said_to_be_one(run: Run) -> None:
    facts = facts_of(run, [], "owner/m", made(60, base_id="someone/Foo-7B-bnb-4bit"))
    card = ModelCard(model_card(facts))
    assert card.data.base_model == "someone/Foo-7B-bnb-4bit"
    assert "a quantized copy of a model that is not known here" in card.text
    facts = facts_of(run, [], "owner/m", made(60, base_id="acme/Foo-7B"))
    assert ModelCard(model_card(facts)).data.base_model == "acme/Foo-7B"
    assert "quantized copy" not in model_card(facts)


def test_merged_weights_that_were_unpacked_from_4_bits_are_said_to_be(run: Run) -> None:
    facts = facts_of(run, [], "owner/Llama-x", made(60))
    assert "unpacked" not in model_card(facts, merged=True)
    facts = facts_of(run, [], "owner/Llama-x", made(60, unpacked=True))
    assert "not into the original's own 16-bit ones" in model_card(facts, merged=True)
    assert "unpacked" not in model_card(facts), "the adapter is what it is"


def test_the_card_speaks_of_the_adapter_that_is_published_and_not_of_where_the_run_ended(tmp_path: Path) -> None:
    run = Runs(tmp_path).create(ModelConfig(), DatasetConfig(), preset("quick"))
    for step, loss in ((0, 2.5), (10, 2.25), (20, 2.125), (30, 1.75)):
        run.append_metric({"step": step, "held_out_loss": loss, "loss": loss})
    run.set_status(state="interrupted", step=35, steps=60, rows=476)
    text = model_card(facts_of(run, [], "owner/m", made(20, final=False)))
    assert f"the checkpoint at step 20 of run {run.id}, trained for 20 of 60 planned steps with DeepDoctor" in text.replace("\\", "")
    assert "| held-out, " in text
    assert "| 2.5000 (step 0) | 2.1250 (step 20) |" in text
    assert "1.75" not in text
    assert "final" not in text
    stopped = model_card(facts_of(run, [], "owner/m", made(25)))
    assert "the final adapter of run" in stopped
    assert "trained for 25 of 60 planned steps" in stopped
    assert "| 2.5000 (step 0) | not measured at step 25 |" in stopped
    assert "| training | 2.5000 (step 0) | 2.1250 (step 20) |" in stopped


def test_examples_are_of_the_very_weights_that_are_published(run: Run) -> None:
    older = compared("older adapter", run=run.id, proof=replace(PROOF, adapter_hash="older"))
    by_step = compared("the same by its step", run=run.id, step=60)
    examples = facts_of(run, [older, by_step], "o/r", made(60)).examples
    assert [each.question for each in examples] == ["the same by its step"]
    assert facts_of(run, [older, by_step], "o/r", made(60, adapter_hash="")).examples == ()


def test_examples_are_this_adapters_newest_proven_ones_unseen_first(run: Run) -> None:
    broken = replace(PROOF, effect=0.0)
    mine = [compared(f"q{n}", run=run.id, grade=grade) for n, grade in enumerate(["seen", "unseen", "seen", "unseen", "unseen"])]
    others = [
        compared("other run", run="other"),
        compared("checkpoint", run=run.id, step=20, proof=replace(PROOF, adapter_hash="at 20")),
        compared("no proof", run=run.id, proof=None),
        compared("broken proof", run=run.id, proof=broken),
        compared("unfinished", run=run.id, tuned=Transcript("x")),
    ]
    assert [each.question for each in facts_of(run, [*others, *mine], "o/r", made(60)).examples] == ["q1", "q3", "q4"]
    assert [each.question for each in facts_of(run, [*others, *mine[:1]], "o/r", made(60)).examples] == ["q0"]
    assert [each.question for each in facts_of(run, others, "o/r", made(20, adapter_hash="at 20")).examples] == ["checkpoint"]


def test_cards_are_written_where_there_is_something_to_describe(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    write_cards(tmp_path, FACTS)
    assert not (tmp_path / "merged").exists()
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == ["NOTICE", "README.md", "loss.png"]
    assert (tmp_path / "adapter" / "NOTICE").read_text().startswith("Llama 3.1 is licensed")
    (tmp_path / "merged").mkdir()
    write_cards(tmp_path, replace(FACTS, model=ModelConfig(), base_id=None, curve=()))
    assert [file.name for file in (tmp_path / "merged").iterdir()] == ["README.md"]
    assert "# Llama-medical-merged" in (tmp_path / "merged" / "README.md").read_text()


def test_the_card_names_the_prompt(run: Run) -> None:
    text = model_card(facts_of(run, [], "owner/Llama-x", made(60)))
    assert "### Question:\n{question}\n### Response:\n<think>\n```" in text
