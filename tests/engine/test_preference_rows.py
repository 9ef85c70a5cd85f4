"""The exports as the libraries that they are made for read them: datasets and pandas load the files, TRL's trainers take the rows."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.data_utils import is_conversational

from deepdoctor.prompts import THINK_CLOSE
from deepdoctor.studies.answers import Answer
from deepdoctor.studies.exports import Answers, jsonl, preferences, verdicts_csv, verdicts_jsonl
from deepdoctor.studies.judged import Judged
from deepdoctor.studies.study import Study
from tests.studies.panel import verdicts
from tests.studies.prepared import prepared

COMMENTS = ('plain, "quoted"', "=1+1", "two\r\nlines\rthree", "ünïcode\u2028", "")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return prepared(tmp_path / "data", 4)


@pytest.fixture
def answers(study: Study) -> Answers:
    return {key: Answer.from_row(row) for key, row in study.answers().items()}


@pytest.fixture
def judged(answers: Answers) -> list[Judged]:
    """Four raters on each question: two for tuned, one for the base, one pair that is bad throughout."""
    said = verdicts(["tuned"] * 8 + ["other"] * 4 + ["neither"] * 4)
    keys = dict(zip(dict.fromkeys(each.question for each in said), answers, strict=True))
    told = [replace(each, comment=COMMENTS[number % len(COMMENTS)]) for number, each in enumerate(said)]
    return [replace(each, question=keys[each.question][0], seed=keys[each.question][1]) for each in told]


def loaded(lines: str, folder: Path) -> Dataset:
    """JSON lines as a file, read by `datasets`."""
    file = folder / "rows.jsonl"
    file.write_text(lines, encoding="utf-8", newline="")
    read = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    assert isinstance(read, Dataset)
    return read


def trained_on(trainer: Any, model: Path, rows: Dataset, config: Any) -> Any:
    """What a trainer makes of the rows before it would begin."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    return trainer(model=network, args=config, train_dataset=rows, processing_class=tokenizer)


def settings(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True, "max_length": None, "per_device_train_batch_size": 2}


def test_dpo_rows_are_what_the_trainer_takes(llama: Path, judged: list[Judged], answers: Answers, tmp_path: Path) -> None:
    made = preferences(judged, answers).dpo
    rows = loaded(jsonl(made), tmp_path)
    assert rows.to_list() == made
    assert len(made) == 3
    assert {name: feature.dtype for name, feature in rows.features.items()} == dict.fromkeys(("prompt", "chosen", "rejected"), "string")
    assert not any(is_conversational(row) for row in made), "strings as they are: no template comes between"
    trainer = trained_on(DPOTrainer, llama, rows, DPOConfig(**settings(tmp_path)))
    tokenizer = trainer.processing_class
    for row, taken in zip(made, trainer.train_dataset, strict=True):
        assert tokenizer.decode(taken["prompt_ids"] + taken["chosen_ids"]) == tokenizer.decode(
            tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token)["input_ids"]
        )
        assert taken["chosen_ids"][-1] == taken["rejected_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(taken["prompt_ids"]).endswith("<think>"), "all of the thought is learnt"
        assert THINK_CLOSE in row["chosen"]


def test_kto_rows_are_what_the_trainer_takes(llama: Path, judged: list[Judged], answers: Answers, tmp_path: Path) -> None:
    made = preferences(judged, answers).kto
    rows = loaded(jsonl(made), tmp_path)
    assert rows.to_list() == made
    assert {name: feature.dtype for name, feature in rows.features.items()} == {"prompt": "string", "completion": "string", "label": "bool"}
    assert {row["label"] for row in made} == {True, False}
    assert not any(is_conversational(row) for row in made)
    trainer = trained_on(KTOTrainer, llama, rows, KTOConfig(**settings(tmp_path)))
    assert len(trainer.train_dataset) == len(made)


def test_verdicts_are_read_as_they_were_written(judged: list[Judged], tmp_path: Path) -> None:
    lines = verdicts_jsonl(judged)
    assert loaded(lines, tmp_path).to_list() == [json.loads(line) for line in lines.split("\n") if line]
    table = pd.read_csv(io.BytesIO(verdicts_csv(judged).encode()), keep_default_na=False)
    assert list(table.columns) == list(Judged.__dataclass_fields__)
    assert table["preference"].tolist() == [each.preference for each in judged]
    assert table["seconds"].tolist() == [each.seconds for each in judged]
    assert table["comment"].tolist() == [f"'{each.comment}" if each.comment.startswith("=") else each.comment for each in judged]
