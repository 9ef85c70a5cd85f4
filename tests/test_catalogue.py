"""What can be chosen by name, and what an app starts with."""

from pathlib import Path

from deepdoctor.catalogue import KNOWN, ON_A_GPU, default_model, known


def test_without_a_gpu_the_embedded_model_with_one_the_8b(tmp_path: Path) -> None:
    assert default_model(tmp_path / "missing") == "nano"
    assert default_model(tmp_path) == "nano"
    (tmp_path / "0000:01:00.0").mkdir()
    assert default_model(tmp_path) == ON_A_GPU.name == "unsloth/DeepSeek-R1-Distill-Llama-8B"


def test_a_model_is_known_by_its_id() -> None:
    assert len({each.name for each in KNOWN}) == len(KNOWN) == 6
    assert known(KNOWN[3].name) is KNOWN[3]
    assert known("someone/else") is None
