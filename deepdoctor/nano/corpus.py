"""The pretraining corpus: endless fresh cases in the base voice, as token ids. Written by many processes at once."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from tokenizers import Tokenizer

from deepdoctor.dataset import Example
from deepdoctor.nano.base_voice import in_base_voice
from deepdoctor.nano.cases import Case, random_case, showcase_case
from deepdoctor.nano.dataset_voice import in_dataset_voice
from deepdoctor.nano.knowledge import Condition, load_conditions
from deepdoctor.nano.tokenizer import EOS
from deepdoctor.prompts import ARTICLE, NATIVE, render_completion, render_question

SHOWCASE_SHARE = 0.0005
ANSWER_FOLLOWS_THOUGHT = 0.25
CHUNK = 1000


@dataclass(frozen=True)
class Corpus:
    """Documents laid end to end. Document i is `ids[starts[i]:starts[i + 1]]`; its first `prompts[i]` ids are the prompt."""

    ids: np.ndarray  # int16, (tokens,)
    starts: np.ndarray  # int64, (documents + 1,)
    prompts: np.ndarray  # int32, (documents,)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, shape (documents,)."""
        return np.diff(self.starts)


def document(index: int, conditions: Sequence[Condition], seed: int, dataset_voice: float = 0.0) -> tuple[Example, str, str]:
    """Document number `index` of the corpus as (example, prompt, completion). The same arguments give the same document.

    A condition that stands more than once in `conditions` comes up that much more often. `dataset_voice` is the share of thoughts, and of
    answers, that are in the dataset voice; the others are in the base voice.
    """
    random = Random(f"{seed}/{index}")
    case = showcase_case(conditions) if random.random() < SHOWCASE_SHARE else random_case(conditions, random)
    example = _mixed(case, random, dataset_voice)
    style = ARTICLE if random.random() < 0.5 else NATIVE
    return example, render_question(example.question, style), render_completion(example.reasoning, example.response, EOS, style)


def _mixed(case: Case, random: Random, dataset_voice: float) -> Example:
    # thought and answer change voice separately, so that a thought in the dataset voice does not yet settle how the answer reads
    thought = random.random() < dataset_voice
    answer = random.random() < (max(dataset_voice, ANSWER_FOLLOWS_THOUGHT) if thought else dataset_voice)
    base = in_base_voice(case, random)
    if not (thought or answer):
        return base
    dataset = in_dataset_voice(case, random)
    return Example(case.question, (dataset if thought else base).reasoning, (dataset if answer else base).response)


def tokenizer_texts(documents: int, seed: int) -> Iterator[str]:
    """Texts to learn the tokenizer from: base voice with a fifth of dataset voice, without the tokens that are added later."""
    conditions = load_conditions()
    for index in range(documents):
        example, _, _ = document(index, conditions, seed, dataset_voice=0.2)
        yield f"{example.question}\n{example.reasoning}"
        yield example.response


def make_corpus(
    tokenizer: Tokenizer,
    documents: int,
    seed: int,
    dataset_voice: float = 0.0,
    processes: int = 1,
    conditions: Sequence[Condition] = (),
) -> Corpus:
    """Write and tokenize `documents` documents about `conditions` (all, unless given); `processes` does not change what comes out."""
    write = partial(
        _chunk,
        tokenizer=tokenizer.to_str(),
        documents=documents,
        seed=seed,
        dataset_voice=dataset_voice,
        conditions=conditions or load_conditions(),
    )
    starts = range(0, documents, CHUNK)
    if processes == 1:
        chunks = [write(start) for start in starts]
    else:
        with multiprocessing.get_context("spawn").Pool(processes, initializer=_alone) as pool:
            chunks = pool.map(write, starts, chunksize=1)
    lengths = np.concatenate([lengths for _, lengths, _ in chunks])
    return Corpus(
        ids=np.concatenate([ids for ids, _, _ in chunks]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompts=np.concatenate([prompts for _, _, prompts in chunks]),
    )


def _alone() -> None:
    # as many processes as cores already: threads inside each would only get in each other's way
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _chunk(
    start: int, *, tokenizer: str, documents: int, seed: int, dataset_voice: float, conditions: Sequence[Condition]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    encoder = Tokenizer.from_str(tokenizer)
    written = [document(index, conditions, seed, dataset_voice) for index in range(start, min(start + CHUNK, documents))]
    # encoded as one text: a merge across the joint must come out as it does when the model is tuned
    encodings = encoder.encode_batch([prompt + completion for _, prompt, completion in written])
    prompts = [
        sum(begin < len(prompt) for begin, _ in encoding.offsets) for encoding, (_, prompt, _) in zip(encodings, written, strict=True)
    ]
    lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
    ids = np.concatenate([np.array(encoding.ids, dtype=np.int16) for encoding in encodings])
    return ids, lengths, np.array(prompts, dtype=np.int32)
