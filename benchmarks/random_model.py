"""Stand-ins for what cannot be shipped: a model of the 8B's architecture with random weights, and rows as long as the dataset's.

Speed, memory and exactness measured with them are real; only the words are noise. `python benchmarks/random_model.py FOLDER [--layers 32]`.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from deepdoctor.config import DatasetConfig
from deepdoctor.dataset import load_rows
from deepdoctor.engine.source import EMBEDDED_FOLDER

ROPE = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}


def save_8b(folder: Path, layers: int = 32) -> Path:
    """A Llama of the 8B's shape with random bfloat16 weights and the embedded model's tokenizer, 16 GB on disk. Needs a GPU."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_parameters=ROPE,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(EMBEDDED_FOLDER / name, folder / name)
    return folder


def save_rows(file: Path, rows: int = 500, tokens: int = 650) -> Path:
    """Rows in the dataset's own columns, `tokens` long on average (with the embedded tokenizer), from 0.4 to 1.6 times that."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    words = sorted({word for row in load_rows(DatasetConfig()).rows for word in str(row["Complex_CoT"]).split()})
    per_word = len(tokenizer.encode(" ".join(words)).ids) / len(words)
    drawn = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            length = drawn.uniform(0.4, 1.6) * (tokens - 110) / per_word
            question, response = (" ".join(drawn.choices(words, k=round(length * share))) for share in (0.15, 0.25))
            reasoning = " ".join(drawn.choices(words, k=round(length * 0.6)))
            row = {"Question": f"Case {number}: {question}?", "Complex_CoT": reasoning, "Response": response}
            out.write(json.dumps(row) + "\n")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    print(save_8b(options.folder, options.layers))
