"""The benchmarks run, on a model small enough to be made on the spot; their figures are of one shape."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deepdoctor
from deepdoctor.config import EMBEDDED_MODEL, DatasetConfig, ModelConfig, preset
from deepdoctor.engine.model import LoadedModel, load
from deepdoctor.engine.source import EMBEDDED_FOLDER
from tests.ui.fakes import in_event_loop

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """benchmarks/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def paired_decoding() -> ModuleType:
    return benchmark("paired_decoding")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A loaded model of two narrow layers with random weights and the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=2944, max_position_embeddings=256, eos_token_id=1, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_FOLDER / name).read_bytes())
    return load(ModelConfig(name=str(folder)), folder)


def test_paired_decoding_is_measured_beside_generate(paired_decoding: ModuleType, tiny: LoadedModel) -> None:
    adapter = paired_decoding.random_adapter(tiny)
    prompts = [list(range(10, 20)), list(range(30, 37))]
    result = paired_decoding.measure(tiny, adapter, prompts, tokens=6, repeats=2)
    assert result["identical"] == {"base": True, "tuned": True}
    assert result["sides_differ"]
    assert result["ratio"] == pytest.approx(result["paired"]["seconds"] / result["sequential"]["seconds"], abs=0.02)
    assert result["reached"] == (result["ratio"] <= 0.65)
    times = result["pairs_at_once"]["tokens_per_second"] / result["paired"]["tokens_per_second"]
    assert result["pairs_times"] == pytest.approx(times, abs=0.02)
    assert result["pairs_reached"] == (times >= 3)
    floor, base = result["floor"], tiny.base
    layers = sum(weight.nbytes for name, weight in base.model.layers.named_parameters() if "lora_" not in name)
    assert floor["bytes_read"] == layers + base.lm_head.weight.nbytes
    assert floor["ms_per_step"] == pytest.approx(floor["bytes_read"] / floor["copy_gb_per_second"] / 1e6, abs=0.002)
    assert floor["times_floor"] >= 1
    shown = paired_decoding.as_markdown({**result, "machine": paired_decoding.machine(tiny), "adapter": "a random adapter"})
    assert "| one pair in one pass |" in shown
    assert "Greedy tokens identical: base yes, tuned yes" in shown
    assert "2 pairs at once write **" in shown
    assert f"Floor: {floor['bytes_read'] / 1e6:.1f} MB of weights" in shown


def test_every_side_writes_exactly_as_many_tokens_as_asked(paired_decoding: ModuleType, tiny: LoadedModel) -> None:
    adapter = paired_decoding.random_adapter(tiny)
    prompt = list(range(10, 20))
    greedy = paired_decoding.paired(tiny, [prompt], adapter, 4)[0]
    tiny.tokenizer.eos_token_id = greedy[1]  # would end the answer at its second token
    try:
        assert paired_decoding.paired(tiny, [prompt], adapter, 4)[0] == greedy
        assert paired_decoding.sequential(tiny, prompt, adapter, 4)[0] == greedy
    finally:
        tiny.tokenizer.eos_token_id = 1


def test_an_unknown_run_is_told(paired_decoding: ModuleType, tiny: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paired_decoding.main(["--model", tiny.config.name, "--run", "nope", "--data-dir", str(tmp_path)]) == 2
    assert "no run 'nope'" in capsys.readouterr().err


def test_judging_goes_on_when_the_app_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    judging_load = benchmark("judging_load")
    result = judging_load.benchmark(raters=3, verdicts=12, pause=0.3)
    assert (result["verdicts"], result["lost"], result["stored_twice"], result["refused"]) == (12, 0, 0, 0)
    assert 6 <= result["killed_after"] < 12
    assert result["save"]["p50"] <= result["save"]["p95"] <= result["save"]["max"]
    assert "Told saved but not on disk: **0**" in judging_load.as_markdown(result)


def test_a_long_run_is_watched_in_few_points_and_keeps_few_checkpoints(tmp_path: Path) -> None:
    long_run = benchmark("long_run")
    result = in_event_loop(lambda: long_run.measure(tmp_path, steps=1500, viewers=3, rounds=2))
    assert 400 < result["most_points"] <= 480
    assert (result["most_checkpoints"], result["checkpoints"]) == (5, [1100, 1200, 1300, 1400, 1500])
    assert result["best"]["step"] == 1200
    assert result["reached"] == (result["tick"]["p95"] <= 0.05)
    shown = long_run.as_markdown(result)
    assert "1,500 logged steps, 3 viewers at the same moment" in shown
    assert "at most 5; left are those of the steps 1100, 1200" in shown


def test_the_benchmark_of_fine_tuning_counts_steps_and_nothing_else() -> None:
    """The engine asks whether to stop within probes too."""
    finetuning = benchmark("finetuning")
    recipe = preset("quick").changed(max_steps=2, warmup_steps=1, held_out_rows=4, probe_tokens=5)
    found = finetuning.ours(EMBEDDED_MODEL, "ours", DatasetConfig(), recipe, None)
    assert len(found["ends"]) == 2
    assert found["ends"] == sorted(found["ends"])


def test_every_benchmark_starts_as_its_file_says(tmp_path: Path) -> None:
    """`python benchmarks/NAME.py`, from anywhere, where only the package is installed. In one process, which imports the libraries once."""
    (tmp_path / "deepdoctor").symlink_to(Path(deepdoctor.__file__).parent)
    script = (
        "import pathlib, runpy, sys\n"
        "before = sys.path[1:]\n"
        "for file in sys.argv[1:]:\n"
        "    sys.path[:] = [str(pathlib.Path(file).parent), *before]\n"
        "    for name in [name for name in sys.modules if name.partition('.')[0] == 'benchmarks']:\n"
        "        del sys.modules[name]\n"
        "    runpy.run_path(file)\n"
    )
    files = [str(file) for file in BENCHMARKS.glob("*.py") if f"python benchmarks/{file.name}" in file.read_text(encoding="utf-8")]
    assert len(files) >= 8
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "UNSLOTH": "off"}
    done = subprocess.run(
        [sys.executable, "-c", script, *files], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
