"""With a built llama.cpp and Unsloth's converter: a GGUF file is written by them, and llama.cpp continues a prompt as the app does.

Run by hand, without a GPU too: UNSLOTH_LLAMA_CPP_PATH names a folder with llama-quantize, llama-completion, convert_hf_to_gguf.py and what
that imports; then `UNSLOTH_ZOO_DISABLE_GPU_INIT=1 pytest -m llamacpp`. Needs unsloth_zoo and sentencepiece.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from deepdoctor.config import ModelConfig, SamplingConfig
from deepdoctor.engine.protocol import GGUF_KINDS, Compare, Export
from deepdoctor.engine.session import Session
from deepdoctor.errors import RunError
from deepdoctor.nano.tokenizer import BOS, EOS, MARKER_TOKENS, PAD, save_tokenizer
from deepdoctor.prompts import render_question, style_named
from deepdoctor.runs import Run
from tests.engine import tiny

pytestmark = pytest.mark.llamacpp
QUESTION = "A patient aged 50 has thirst. What is it?"
# characters of a greedy answer that must be the same: a model so small is never sure for long, and its weights are rounded to 16 bits
SAME = 12


def letters() -> Tokenizer:
    """A tokenizer of single letters, as SentencePiece's: the kind that llama.cpp reads from any file, where others must be known to it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
    )
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", BOS, EOS, PAD)]
    every_byte = [AddedToken(f"<0x{number:02X}>", special=False, normalized=False) for number in range(256)]
    texts = [render_question(row["Question"]) + row["Complex_CoT"] + row["Response"] for row in tiny.rows()]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1, special_tokens=special + every_byte, show_progress=False))
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKER_TOKENS])
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))])
    return made


def save_model(folder: Path) -> Path:
    """A tiny Llama that reads and writes letters."""
    tokenizer = letters()
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    tiny.save_model(folder, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=2048, hidden_size=64, **ids)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Run]:
    """A session with that model and a run over it."""
    root = tmp_path_factory.mktemp("letters")
    session = tiny.open_session(root / "data", save_model(root / "model"))
    rows = tiny.write_rows(root / "rows.jsonl", tiny.rows())
    return session, session.finetune(tiny.new_run(session, rows, max_steps=200, max_seq_length=2048).id)


def by_llama_cpp(file: Path, prompt: str, tokens: int) -> tuple[list[int], str]:
    """The ids that llama.cpp reads of a prompt, and the text that it continues with, greedily."""
    command = [str(Path(os.environ["UNSLOTH_LLAMA_CPP_PATH"]) / "llama-completion"), "-m", str(file), "-p", prompt, "-n", str(tokens)]
    quiet = [
        "--temp",
        "0",
        "-no-cnv",
        "--no-warmup",
        "-sp",
        "--no-display-prompt",
        "--verbose-prompt",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "-fa",
        "off",
    ]
    done = subprocess.run([*command, *quiet], capture_output=True, text=True, errors="replace", check=True, timeout=120)
    return [int(found) for found in re.findall(r" (\d+) -> '", done.stderr)], done.stdout


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_llama_cpp_reads_the_file_and_continues_as_the_app_does(trained: tuple[Session, Run], kind: str) -> None:
    session, run = trained
    folder = session.export(Export(run.id, merged=False, gguf=kind))
    (file,) = (folder / "gguf").iterdir()
    assert file.name == f"{run.id}-{kind}.gguf"
    prompt = render_question(QUESTION, style_named(run.finetune.prompt_style))
    read, said = by_llama_cpp(file, prompt, 32)
    assert read == tiny.model_of(session).tokenizer(prompt)["input_ids"]
    *_, made = session.compare(Compare(QUESTION, run.id, sampling=SamplingConfig(temperature=0, max_new_tokens=32)))
    assert len(said.strip()) > SAME
    if kind in ("bf16", "f16"):  # the others are rounded more than this model's choices are apart
        assert begins(said) == begins(made.tuned.text) != begins(made.base.text)


def begins(text: str) -> str:
    """The first letters of an answer; single bytes, of which such a model writes some, are not shown alike."""
    return re.sub("[^a-z]", "", text)[:SAME]


def test_a_tokenizer_that_llama_cpp_does_not_know_is_told_and_the_run_is_unharmed(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.load(ModelConfig())
    run = session.finetune(tiny.new_run(session, tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()), max_steps=1).id)
    with pytest.raises(RunError, match=r"converted to GGUF: NotImplementedError: BPE pre-tokenizer was not recognized.*run is unharmed"):
        session.export(Export(run.id, gguf="q8_0"))
    assert (session.export(Export(run.id, merged=False)) / "adapter").is_dir()
