"""The house rules that a machine can hold: who imports whom, who may touch gradio and torch, and how long things get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    *("errors", "files", "prompts", "config", "catalogue", "access", "overlap", "readers", "hub", "download", "space", "dataset"),
    *("tokens", "checks", "processes", "runs", "checkpoints", "proof", "comparison", "figures", "origins", "card", "hub_adapters"),
    *("studies.questions", "studies.trials", "studies.answers", "studies.study"),
    *("studies.blinded", "studies.judgments", "studies.judged", "studies.mirror", "studies.agreement"),
    *("studies.statistics", "studies.intervals", "studies.measures", "studies.contest", "studies.headline", "studies.exports"),
    *("studies.results", "studies.figures", "studies.report", "studies.bundle", "studies.draft", "studies.progress"),
    *("engine.protocol", "engine.unwritten", "engine.lost", "engine.client"),
    *("estimates", "planner", "plan", "publish"),
    *("engine", "nano", "preview", "commands", "studies.commands", "flags", "cli", "__main__", "ui", "app"),
)
TORCH = {"torch", "transformers", "peft", "trl", "unsloth", "bitsandbytes", "accelerate", "safetensors"}
TORCH_FREE = {"deepdoctor.engine", *(f"deepdoctor.engine.{name}" for name in ("protocol", "unwritten", "lost", "client"))}
TORCH_IN_NANO = {"deepdoctor.nano.build", "deepdoctor.nano.refresh", "deepdoctor.nano.tokenizer", "deepdoctor.nano.report"}
FILES = [*sorted((ROOT / "deepdoctor").rglob("*.py")), ROOT / "app.py"]
TREES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text()) for file in FILES}


def imports(node: ast.AST) -> Iterator[str]:
    """Names of the modules imported anywhere below a node, except for type checking only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


def place(name: str) -> int:
    """Where a module stands in ORDER: by its own name, or by that of its package."""
    parts = name.removeprefix("deepdoctor.").split(".")
    found = [".".join(parts[:length]) for length in (2, 1) if ".".join(parts[:length]) in ORDER]
    assert found, f"give {name} a place in ORDER"
    return ORDER.index(found[0])


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"deepdoctor"}))
def test_a_module_imports_only_from_what_stands_before_it(name: str) -> None:
    for imported in imports(TREES[name]):
        if imported.startswith("deepdoctor."):
            assert place(imported) <= place(name), f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(TREES))
def test_only_the_page_imports_gradio_and_only_the_engine_torch(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(TREES[name])}
    assert "gradio" not in roots or name.startswith("deepdoctor.ui")
    in_engine = name.startswith("deepdoctor.engine.") and name not in TORCH_FREE
    assert not roots & TORCH or in_engine or name in TORCH_IN_NANO
    assert "wandb" not in roots or in_engine


@pytest.mark.parametrize("name", sorted(name for name in TREES if name.startswith("deepdoctor.ui")))
def test_the_page_knows_of_the_engine_only_what_needs_no_torch(name: str) -> None:
    of_engine = {imported for imported in imports(TREES[name]) if imported.startswith("deepdoctor.engine.")}
    assert all(imported.startswith(("deepdoctor.engine.protocol.", "deepdoctor.engine.client.")) for imported in of_engine), of_engine


def test_the_page_starts_without_heavy_imports() -> None:
    heavy = {*TORCH, "datasets", "wandb", "matplotlib", "scipy", "statsmodels", "evalica", "sacrebleu"}
    program = f"import sys, app, deepdoctor.ui.page; sys.exit(' '.join({heavy!r} & sys.modules.keys()) or 0)"
    started = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr


@pytest.mark.parametrize("name", sorted(TREES))
def test_modules_and_functions_stay_small_and_say_what_they_are(name: str) -> None:
    tree = TREES[name]
    assert not tree.body or ast.get_docstring(tree), "a module opens with what it is"
    assert max((node.end_lineno for node in tree.body), default=0) <= 305
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 55, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            few = len([each for each in given if each.arg not in ("self", "cls")]) <= 6
            assert few or name.endswith("kernels"), f"{node.name}: only a kernel takes its addresses and shapes one by one"
