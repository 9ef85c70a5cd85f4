"""Where a base model comes from, how many numbers its files hold, and in which numbers it is held on which card."""

from deepdoctor.engine.accelerator import GIB, Card

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepdoctor.catalogue import KNOWN, ON_A_GPU, Known
from deepdoctor.config import ModelConfig
from deepdoctor.download import fetch_model, is_cached
from deepdoctor.engine.model import unheard
from deepdoctor.engine.source import folder_of, numbers_for, parameters_in, repository_for
from deepdoctor.errors import ModelError
from tests.engine import tiny
from tests.loopback_hub import LoopbackHub

T4, L4, H200 = Card("cuda", round(14.6 * GIB), torch.float16), Card("cuda", round(22.0 * GIB)), Card("cuda", round(139.8 * GIB))
CPU, MPS = Card("cpu", 16 * GIB, torch.float16), Card("mps", 16 * GIB, torch.float16)
B1, B8, B14, B32, B70 = (round(billions * 1e9) for billions in (1.8, 8.0, 14.8, 32.8, 70.6))
# parameters, card, precision, whether the files are quantized already: in which numbers it computes, and whether it is held in 4 bits
NUMBERS = {
    "T4, 1.5B": (B1, T4, "auto", False, torch.float16, False),
    "T4, 8B": (B8, T4, "auto", False, torch.float16, True),
    "T4, 14B": (B14, T4, "auto", False, torch.float16, True),
    "L4, 8B": (B8, L4, "auto", False, torch.bfloat16, False),
    "L4, 14B": (B14, L4, "auto", False, torch.bfloat16, True),
    "H200, 32B": (B32, H200, "auto", False, torch.bfloat16, False),
    "H200, 70B": (B70, H200, "auto", False, torch.bfloat16, False),
    "H200, 8B, 4bit asked for": (B8, H200, "4bit", False, torch.bfloat16, True),
    "H200, quantized": (B8 // 2, H200, "auto", True, torch.bfloat16, True),
    "T4, quantized though 16 bit is asked for": (B8 // 2, T4, "float16", True, torch.float16, True),
    "L4, float16 asked for": (B8, L4, "float16", False, torch.float16, False),
    "H200, float32 asked for": (B8, H200, "float32", False, torch.float32, False),
    "CPU": (B8, CPU, "auto", False, torch.float32, False),
    "CPU, bfloat16 asked for": (B8, CPU, "bfloat16", False, torch.bfloat16, False),
    "MPS": (B1, MPS, "auto", False, torch.float32, False),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_the_numbers_suit_the_card(case: str) -> None:
    parameters, card, precision, quantized, dtype, four_bit = NUMBERS[case]
    config = ModelConfig.of({"name": "owner/model", "precision": precision})
    assert numbers_for(config, parameters, card, quantized) == (dtype, four_bit)


def test_the_embedded_model_is_held_in_32_bits_everywhere() -> None:
    assert numbers_for(ModelConfig(), 4_200_000, H200, False) == (torch.float32, False)


@pytest.mark.parametrize(
    ("parameters", "card", "words"), [(B32, T4, "about 22 GiB .* this GPU has 15"), (B70, L4, "about 43 GiB .* has 22")]
)
def test_a_gpu_too_small_even_for_4_bits_is_told_with_both_numbers(parameters: int, card: Card, words: str) -> None:
    for precision in ("auto", "4bit"):
        with pytest.raises(ModelError, match=words):
            numbers_for(ModelConfig.of({"name": "owner/model", "precision": precision}), parameters, card, False)


def test_parameters_are_counted_over_all_shards_and_only_once(tmp_path: Path) -> None:
    whole, shards = tiny.save_model(tmp_path / "whole"), tmp_path / "shards"
    model = tiny.plain(whole)
    model.save_pretrained(shards, max_shard_size="60KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    (shards / "consolidated.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    assert parameters_in(shards) == parameters_in(whole) == model.num_parameters()


def pack(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Files with the names and shapes that bitsandbytes' NF4 has; the numbers in them mean nothing."""
    packed, states = dict(weights), dict[str, torch.Tensor]()
    linear = [name for name in weights if "_proj" in name]
    for place, name in enumerate(linear):
        octets = torch.zeros(weights[name].numel() // 2, dtype=torch.uint8)
        packed[name] = (octets.view(torch.bfloat16) if place % 2 else octets)[:, None]
        states[f"{name}.absmax"] = torch.zeros(weights[name].numel() // 64, dtype=torch.uint8)
        states |= {f"{name}.{part}": torch.zeros(16) for part in ("quant_map", "nested_absmax", "nested_quant_map")}
        states[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(90, dtype=torch.uint8)
    assert linear
    save_file({name: weight.contiguous() for name, weight in packed.items()}, folder / "model-00001-of-00002.safetensors")
    save_file(states, folder / "model-00002-of-00002.safetensors")
    return folder


def test_packed_4_bit_weights_count_as_the_weights_they_are(llama: Path, tmp_path: Path) -> None:
    """Two to a byte, in bytes or in wider storage, with what unpacks them in another file; norms and embeddings count as ever."""
    plain = load_file(llama / "model.safetensors")
    assert parameters_in(pack(plain, tmp_path)) == parameters_in(llama) == sum(map(torch.numel, plain.values()))


OWN, MIRROR = ON_A_GPU.name, ON_A_GPU.four_bit
# card, precision, revision, whether the original is in the cache: which repository is fetched
REPOSITORIES = {
    "T4, auto": (T4, "auto", None, False, MIRROR),
    "T4, auto, the original is here": (T4, "auto", None, True, OWN),
    "T4, auto, a revision pinned": (T4, "auto", "main", False, OWN),
    "T4, 16 bits": (T4, "float16", None, False, OWN),
    "T4, 4 bits": (T4, "4bit", None, False, MIRROR),
    "L4, auto": (L4, "auto", None, False, OWN),
    "H200, 4 bits": (H200, "4bit", None, False, MIRROR),
    "H200, 4 bits, the original is here": (H200, "4bit", None, True, OWN),
    "CPU, auto": (CPU, "auto", None, False, OWN),
}


@pytest.mark.parametrize("case", REPOSITORIES)
def test_what_is_held_in_4_bits_anyway_comes_from_the_mirror(case: str) -> None:
    card, precision, revision, cached, expected = REPOSITORIES[case]
    config = ModelConfig.of({"name": OWN, "precision": precision, "revision": revision})
    assert repository_for(config, card, ON_A_GPU, cached) == expected


@pytest.mark.parametrize("entry", [None, KNOWN[1]], ids=["not in the catalogue", "without a mirror"])
def test_others_come_from_where_they_are(entry: Known | None) -> None:
    assert repository_for(ModelConfig(name="owner/model", precision="4bit"), T4, entry, False) == "owner/model"


@pytest.mark.parametrize(("card", "words"), [(Card("cuda", 6 * GIB), "about 8 GiB .* this GPU has 6"), (CPU, "need an NVIDIA GPU")])
def test_what_can_never_be_held_is_refused_before_it_is_downloaded(card: Card, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        repository_for(ModelConfig(name=OWN, precision="4bit"), card, ON_A_GPU, False)


def model_files(mark: bytes) -> dict[str, bytes]:
    """A model's repository that can be told from others."""
    return {"config.json": b"{}", "model.safetensors": mark * 500}


def marked(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()[:1]


def test_the_mirror_is_downloaded_and_told_and_16_bits_still_come_from_the_original(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(OWN, model_files(b"o"))
    loopback_hub.add_repo(MIRROR, model_files(b"m"))
    told: list[str] = []
    packed = folder_of(ModelConfig(name=OWN), T4, lambda words, _fraction: told.append(words))
    assert marked(packed) == b"m"
    assert told[0] == f"Looking for {MIRROR} on the Hub"
    assert told[1].startswith(f"Downloading {MIRROR}: ")
    assert loopback_hub.asked(f"/{OWN}/") == 0
    assert not is_cached(OWN)
    assert folder_of(ModelConfig(name=OWN), T4, unheard) == packed
    whole = folder_of(ModelConfig(name=OWN, precision="float16"), T4, lambda words, _fraction: told.append(words))
    assert marked(whole) == b"o"
    assert any(words.startswith(f"Downloading {OWN}: ") for words in told)
    assert folder_of(ModelConfig(name=OWN), T4, unheard) == whole, "nothing is fetched that is here already"


def test_an_original_in_the_cache_is_taken_without_asking_for_the_mirror(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(OWN, model_files(b"o"))
    fetch_model(OWN, None, unheard)
    loopback_hub.stop()
    assert marked(folder_of(ModelConfig(name=OWN), T4, unheard)) == b"o"


def test_without_a_mirror_on_the_hub_the_original_is_fetched(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(OWN, model_files(b"o"))
    told: list[str] = []
    assert marked(folder_of(ModelConfig(name=OWN), T4, lambda words, _fraction: told.append(words))) == b"o"
    assert f"{MIRROR} is not on the Hub any more, so {OWN} itself is fetched" in told


def test_without_a_network_the_original_is_not_tried_instead(loopback_hub: LoopbackHub) -> None:
    loopback_hub.stop()
    told: list[str] = []
    with pytest.raises(ModelError, match="could not be reached"):
        folder_of(ModelConfig(name=OWN), T4, lambda words, _fraction: told.append(words))
    assert told == [f"Looking for {MIRROR} on the Hub"]


def test_a_folder_of_that_name_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / OWN).mkdir(parents=True)
    assert folder_of(ModelConfig(name=OWN), T4, unheard) == Path(OWN)
