"""The folder that a Space is made from: what is in it and what is not, that it starts by itself, and that its pins cover all imports."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement

from deepdoctor import space
from deepdoctor.errors import ConfigError
from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"app.py", "requirements.txt", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "deepdoctor", "docs", "benchmarks"}
# huggingface_hub sends files to LFS in a way that httpx is about to give up
SENDS_FILES = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, made once and only read by the tests."""
    made = tmp_path_factory.mktemp("space") / "folder"
    assert space.main([str(made)]) == 0
    return made


def test_the_folder_holds_what_a_space_needs_and_nothing_else(folder: Path) -> None:
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "LICENSE", "deepdoctor/nano/model/model.safetensors"} <= held
    assert {path.split("/")[0] for path in held} <= PLACES
    shown = {path for path in held if re.fullmatch(r"docs/(images/\w+\.png|references/.*)", path)}
    assert {path for path in held if path.startswith("docs/")} == shown
    linked = re.findall(r"\]\(([^)#:]+)\)", (folder / "docs/references/README.md").read_text(encoding="utf-8"))
    assert {f"docs/references/{name}" for name in linked} <= held
    assert not [path for path in held if "__pycache__" in path or "/." in path or path.endswith((".pyc", ".log"))]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "deepdoctor").rglob("*.py")}
    assert {path for path in held if path.endswith(".py")} == modules | {"app.py"}


def test_no_file_is_too_large_for_a_space(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000
    assert sum(sizes.values()) < 30_000_000


def test_its_readme_is_a_card_whose_links_lead_somewhere(folder: Path) -> None:
    assert SpaceCard.load(folder / "README.md").data.app_file == "app.py"
    links = re.findall(r"\]\(([^)#]+)", (folder / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("https://") and not (folder / link).is_file()] == []


def test_the_folder_starts_by_itself(folder: Path, tmp_path: Path) -> None:
    # without the site module the checkout, which is installed for editing, is not on the path
    paths = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1", "GRADIO_TEMP_DIR": str(tmp_path)}
    command = [sys.executable, "-S", "-u", "app.py", "--port", "0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True) as app:
        try:
            assert app.stdout
            address = re.search(r"http://\S+", app.stdout.readline())
            assert address
            with urllib.request.urlopen(address[0], timeout=20) as answer:
                assert b"DeepDoctor" in answer.read()
        finally:
            app.send_signal(signal.SIGINT)
            app.wait(timeout=20)


def test_its_engine_finds_the_embedded_model(folder: Path, tmp_path: Path) -> None:
    paths = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}
    program = f"""
from pathlib import Path
from deepdoctor import nano
from deepdoctor.config import ModelConfig
from deepdoctor.engine.session import Session
session = Session(Path({str(tmp_path)!r}))
session.load(ModelConfig())
print(nano.__file__, session.loaded.info.name)
"""
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, name = done.stdout.split()[-2:]
    assert Path(file).is_relative_to(folder)
    assert name == "nano"


def test_requirements_name_everything_that_is_imported(folder: Path) -> None:
    pins = re.findall(r"^([\w.-]+)==", (folder / "requirements.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {normal(name) for name in pins}
    packages = packages_distributions()
    # Triton comes with torch, which pins the one that fits it
    imported = {name for file in folder.rglob("*.py") for name in imports(file)} - sys.stdlib_module_names - {"deepdoctor", "triton"}
    assert {name for name in imported if not {normal(each) for each in packages.get(name, [name])} & named} == set()


def imports(file: Path) -> set[str]:
    """The packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pins_are_what_a_space_asks_of_gradio_too(folder: Path) -> None:
    """A Space installs requirements.txt together with gradio[oauth,mcp] of the version in its card, and fails where the two disagree."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {found[1].lower().replace("_", "-"): found[2] for line in lines if (found := re.match(r"([\w.-]+)==([^;\s]+)", line))}
    asked = [Requirement(each) for each in requires("gradio") or ()]
    wanted = [each for each in asked if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in ("", "oauth", "mcp"))]
    assert {"pydantic", "authlib", "mcp", "fastapi"} <= {each.name.lower() for each in wanted}
    wrong = [str(each) for each in wanted if (pin := pins.get(each.name.lower().replace("_", "-"))) and pin not in each.specifier]
    assert wrong == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert space.main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_outside_a_repository_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no app\.py.*whole repository"):
        space.contents(tmp_path)


def repository(root: Path) -> None:
    """What looks like the repository, with a module and the embedded model."""
    for name in space.TOP:
        (root / name).write_text("")
    shutil.copyfile(ROOT / "pyproject.toml", root / "pyproject.toml")
    for name in ("__init__.py", "cli.py", "nano/__init__.py", "nano/cases.json", "nano/model/model.safetensors"):
        (root / "deepdoctor" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "deepdoctor" / name).write_text("")


def test_what_merely_lies_in_the_package_is_left_out(tmp_path: Path) -> None:
    repository(tmp_path)
    before = space.contents(tmp_path)
    for name in (
        *("junk.log", "notes.txt", "data/runs/x.json", "data/runs/x/adapter_model.safetensors", "nano/model/train.log"),
        *(
            "nano/data/x.json",
            "nano/__pycache__/cases.cpython-311.pyc",
            "ui/fonts/.DS_Store",
            "data/script.py",
            "nano/model/old/config.json",
            ".old/__init__.py",
            "ui/fonts/junk.log",
            "ui/judge/templates/notes.txt",
        ),
    ):
        (tmp_path / "deepdoctor" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "deepdoctor" / name).write_text("")
    assert space.contents(tmp_path) == before
    assert Path("deepdoctor/nano/model/model.safetensors") in before


def test_all_that_belongs_to_the_package_is_there(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "deepdoctor"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {path for path in listed.stdout.splitlines() if (ROOT / path).exists()} <= held_by(folder).keys()


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    repository(tmp_path)
    with (tmp_path / "deepdoctor" / "nano" / "model" / "model.safetensors").open("wb") as file:
        file.truncate(10_000_000)
    with pytest.raises(ConfigError, match=r"deepdoctor/nano/model/model\.safetensors is larger than the 10 MB"):
        space.contents(tmp_path)


def test_it_asks_for_a_folder_or_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        space.main([])
    assert "--push" in capsys.readouterr().err


def held_by(folder: Path) -> dict[str, bytes]:
    """The folder's files as a repository holds them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@SENDS_FILES
def test_a_new_space_is_made_private_and_holds_what_the_folder_holds(
    tmp_path: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", loopback_hub.add_user("alice"))
    assert space.main([str(tmp_path / "folder"), "--push", "alice/deepdoctor"]) == 0
    assert f"Pushed to {loopback_hub.url}/spaces/alice/deepdoctor" in capsys.readouterr().out
    made = loopback_hub.repos["space", "alice/deepdoctor"]
    assert made.private
    assert made.made_with["sdk"] == "gradio"
    assert loopback_hub.files("alice/deepdoctor", "space") == held_by(tmp_path / "folder")


@SENDS_FILES
def test_a_later_push_leaves_nothing_of_the_earlier_one_behind(folder: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("alice", "clinic")
    earlier = {"deepdoctor/space.py": b"old", "deepdoctor/gone.py": b"old", "app.py": b"old"}
    loopback_hub.add_repo("clinic/deepdoctor", earlier, "space")
    space.push(folder, "clinic/deepdoctor", token)
    assert loopback_hub.files("clinic/deepdoctor", "space") == held_by(folder)
    assert len(loopback_hub.repos["space", "clinic/deepdoctor"].commits) == 3


def test_another_app_is_not_overwritten(folder: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("alice")
    loopback_hub.add_repo("alice/game", {"app.py": b"a game", "README.md": b"A game"}, "space")
    with pytest.raises(ConfigError, match="holds another app"):
        space.push(folder, "alice/game", token)
    assert loopback_hub.files("alice/game", "space") == {"app.py": b"a game", "README.md": b"A game"}


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("alice/deepdoctor", "hf_wrong", "refused access.*HF_TOKEN"),
        ("alice/deepdoctor", "hf_alice_read", "refused access.*may write"),
        ("bob/deepdoctor", "hf_alice_write", "refused access.*may write"),
        ("no name", "hf_alice_write", "cannot be a space's name"),
    ],
)
def test_what_keeps_a_push_from_happening_is_told(folder: Path, loopback_hub: LoopbackHub, repo: str, token: str, words: str) -> None:
    loopback_hub.add_user("alice")
    loopback_hub.add_user("alice", role="read")
    with pytest.raises(ConfigError, match=words):
        space.push(folder, repo, token)
    assert loopback_hub.repos == {}


def test_a_hub_that_is_not_there_is_told(folder: Path, loopback_hub: LoopbackHub) -> None:
    token = loopback_hub.add_user("alice")
    loopback_hub.stop()
    with pytest.raises(ConfigError, match="could not be reached"):
        space.push(folder, "alice/deepdoctor", token)
