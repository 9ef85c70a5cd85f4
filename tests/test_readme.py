"""The README tells the truth: its tree is the files, its commands exist, its links and pictures lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard, SpaceCardData

from deepdoctor.catalogue import ON_A_GPU
from deepdoctor.config import DatasetConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = ("", "deepdoctor/", "deepdoctor/studies/", "deepdoctor/engine/", "deepdoctor/nano/", "deepdoctor/ui/")
NOT_SHOWN = {"__pycache__", "__init__.py", "data", "build", "dist", "wandb", "site-packages"}


def told_paths() -> list[str]:
    """Paths of the README's tree, folders with a slash at the end. Two spaces of indentation are one level; words follow the name."""
    block = README.split("## The tree", 1)[1].split("```")[1].removeprefix("text").strip("\n")
    found, above = [], [""]
    for line in block.splitlines():
        name, told = re.fullmatch(r" *(\S+)(?: +(.+))?", line).groups()  # type: ignore[union-attr]
        level = (len(line) - len(line.lstrip())) // 2
        assert told, f"the tree says nothing about {name}"
        above = [*above[: level + 1], name] if name.endswith("/") else above[: level + 1]
        found.append("".join(above[: level + 1]) + name)
    return found


def actual_paths() -> set[str]:
    """What lies in the folders that the tree shows, as the tree writes it."""
    found = set()
    for folder in SHOWN:
        for entry in (ROOT / folder).iterdir():
            if entry.name not in NOT_SHOWN and not entry.name.startswith(".") and not entry.name.endswith(".egg-info"):
                found.add(f"{folder}{entry.name}{'/' if entry.is_dir() else ''}")
    return found


def test_the_tree_is_the_files() -> None:
    told, actual = told_paths(), actual_paths()
    assert len(told) == len(set(told)), "named twice"
    assert sorted(actual - set(told)) == [], "not in the README's tree"
    assert sorted(set(told) - actual) == [], "in the README's tree, but gone"


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    words = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", words, flags=re.MULTILINE))
    assert {"app", "test", "check"} <= named
    assert named <= targets


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_module_that_the_readme_runs_exists() -> None:
    modules = re.findall(r"python -m (deepdoctor[\w.]*)", README)
    assert modules
    for module in modules:
        folder = ROOT / module.replace(".", "/")
        assert (folder / "__main__.py").exists() or folder.with_suffix(".py").exists(), module


@pytest.fixture(scope="module")
def card() -> SpaceCardData:
    """The README's head, as the Hub's own library reads it."""
    return SpaceCard.load(ROOT / "README.md").data


def test_the_head_names_everything_a_space_is_made_from(card: SpaceCardData) -> None:
    known = set(vars(SpaceCardData(ignore_metadata_errors=True))) | {
        *("emoji", "colorFrom", "colorTo", "pinned", "short_description", "suggested_hardware", "startup_duration_timeout", "hf_oauth"),
        "preload_from_hub",
    }
    given = {name for name, value in vars(card).items() if value is not None}
    assert given <= known, "a misspelt setting would be ignored without a word"
    assert known - given == {"app_port", "duplicated_from"}
    assert card.sdk == "gradio"
    assert (ROOT / card.app_file).is_file()
    assert card.hf_oauth is True
    assert card.pinned is False
    assert card.license == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"].lower()
    assert DatasetConfig().name in card.datasets
    assert [line.split()[0] for line in card.preload_from_hub] == [ON_A_GPU.name]
    # its weights stay out: which of the two downloads is needed, the hardware decides, and building would wait for either
    assert set(card.preload_from_hub[0].split()[1].split(",")) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert len(card.short_description) <= 60
    assert re.fullmatch(r"\d+(m|h)", card.startup_duration_timeout)
    assert card.suggested_hardware in (
        "cpu-basic",
        "cpu-upgrade",
        "t4-small",
        "t4-medium",
        "l4x1",
        "a10g-small",
        "a10g-large",
        "a100-large",
    )
    assert {card.colorFrom, card.colorTo} <= {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert re.fullmatch(r"[^\w\s]", card.emoji)


def test_the_spaces_gradio_is_the_pinned_one(card: SpaceCardData) -> None:
    (pinned,) = re.findall(r"^gradio==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert card.sdk_version == pinned


def test_the_spaces_python_is_one_that_we_support(card: SpaceCardData) -> None:
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"].removeprefix(">=")
    assert isinstance(card.python_version, str), "3.10 without quotes is the number 3.1"
    assert tuple(map(int, card.python_version.split("."))) >= tuple(map(int, lowest.split(".")))
