"""Rows of a Hub dataset through the real `datasets` library, against a Hub on this machine; and without torch where the page reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import load_rows
from deepdoctor.errors import DatasetError
from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
NAME = "owner/medical-rows"
ROWS = [{"Question": f"What is {number}?", "Complex_CoT": "Let me think.", "Response": f"It is {number}."} for number in range(12)]
CARD = """---
configs:
- config_name: en
  data_files: medical_en.json
- config_name: zh
  data_files: medical_zh.json
---
"""
STREAM = f"""
import sys
from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import load_rows
print(len(load_rows(DatasetConfig(source="hub", name="{NAME}", revision=None, first_rows=5)).rows), "torch" in sys.modules)
"""


@pytest.fixture
def published(loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The dataset in the published one's form: two configs, one JSON file each."""
    import datasets

    cache = str(tmp_path / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    for name, value in {"HF_DATASETS_CACHE": Path(cache), "HF_HUB_OFFLINE": False, "HF_ENDPOINT": loopback_hub.url}.items():
        monkeypatch.setattr(datasets.config, name, value)
    chinese = [{**row, "Question": "什么?"} for row in ROWS[:3]]
    files = {"README.md": CARD.encode(), "medical_en.json": json.dumps(ROWS).encode(), "medical_zh.json": json.dumps(chinese).encode()}
    loopback_hub.add_user("owner")
    loopback_hub.add_repo(NAME, files, kind="dataset")
    return loopback_hub


def config(**changes: object) -> DatasetConfig:
    return DatasetConfig.of({"source": "hub", "name": NAME, "revision": None, "first_rows": 5, **changes})


@pytest.mark.parametrize("first_rows", [5, None])
def test_rows_are_streamed_or_downloaded(published: LoopbackHub, first_rows: int | None) -> None:
    rows = load_rows(config(first_rows=first_rows))
    assert rows.rows == ROWS[:first_rows]
    assert NAME in rows.source
    assert published.asked("GET .*medical_en.json") >= 1
    assert published.asked("GET .*medical_zh.json") == 0


def test_a_config_and_a_revision_are_obeyed(published: LoopbackHub) -> None:
    pinned = published.repos["dataset", NAME].at("main").id
    assert load_rows(config(config="zh", revision=pinned)).rows[0]["Question"] == "什么?"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": "fr"}, "no config 'fr'; choose one of: en, zh"),
        ({"split": "test"}, "no split 'test'; choose one of: train"),
        ({"revision": "0" * 40}, "revision"),
        ({"name": "owner/nothing"}, "owner/nothing"),
    ],
)
@pytest.mark.usefixtures("published")
def test_what_is_not_there_is_told(changes: dict[str, str], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        load_rows(config(**changes))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("setting", "told"), [({"USE_TORCH": "0"}, "5 False"), ({}, "5 True")])
def test_the_page_reads_rows_without_torch(setting: dict[str, str], told: str) -> None:
    """As app.py sets it; without the setting torch would come along."""
    environment = {name: value for name, value in os.environ.items() if name != "USE_TORCH"} | setting
    ran = subprocess.run([sys.executable, "-c", STREAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == told, ran.stderr
