"""The README tells the truth: its tree is the files, its commands exist, its links and pictures lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = ("", "deepdoctor/", "deepdoctor/engine/", "deepdoctor/nano/", "deepdoctor/ui/")
NOT_SHOWN = {"__pycache__", "__init__.py", "data", "build", "dist", "wandb", "site-packages"}


def told_paths() -> set[str]:
    """Paths of the README's tree, folders with a slash at the end. Two spaces of indentation are one level; words follow the name."""
    block = README.split("## The tree", 1)[1].split("```")[1].removeprefix("text").strip("\n")
    found, above = set(), [""]
    for line in block.splitlines():
        name, told = re.fullmatch(r" *(\S+)(?: +(.+))?", line).groups()  # type: ignore[union-attr]
        level = (len(line) - len(line.lstrip())) // 2
        assert told, f"the tree says nothing about {name}"
        above = [*above[: level + 1], name] if name.endswith("/") else above[: level + 1]
        found.add("".join(above[: level + 1]) + name)
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
    assert sorted(actual - told) == [], "not in the README's tree"
    assert sorted(told - actual) == [], "in the README's tree, but gone"


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
