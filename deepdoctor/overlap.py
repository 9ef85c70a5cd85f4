"""Whether a question was in the training rows: seen, near-seen or unseen, with the nearest row. Light at import; NumPy is loaded on use.

Two questions are compared by the character 5-grams of their normalized texts. Each 5-gram weighs log(1 + N/n) squared, N being the training
questions and n those that have it, so that sentence frames shared by many rows ("presents with … What is the diagnosis?") weigh little.

Similarity is the weighted Jaccard index: weight of the shared 5-grams over the weight of all. Where one question stands almost whole inside
the other (CONTAINED of its weight, at least CONTAINED_GRAMS of its 5-grams), that share is the similarity: a question cut short, or with a
sentence added, is still known. NEAR was chosen on generated teaching cases (135 conditions, 500 training rows; weighted Jaccard):

    asked about                                            5%   median  95%   at least 0.6
    another condition, same frames                        0.05   0.08   0.10     0%
    same condition, other combination of findings         0.15   0.35   0.53     1%  (10% with 5,000 rows: then many differ by one finding)
    same patient and findings, new frame, other thing     0.50   0.67   0.83    75%
    same patient and findings, new frame, same thing      0.57   0.72   0.96    88%
    only the age changed                                  0.95   0.97   0.98   100%

Containment of the first half of a row was 0.97 or more, that of any other combination of findings at most 0.92.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Grade = Literal["seen", "near-seen", "unseen"]

NEAR = 0.6
CONTAINED = 0.95
CONTAINED_GRAMS = 40
GRAM = 5
MOST_GRAMS = 20_000_000
METHOD = (
    f"Each question was compared with every row that the run was trained on: seen if equal once case, punctuation and spacing are folded, "
    f"near-seen if weighted character {GRAM}-grams overlap by at least {NEAR:.0%} (or one question stands almost whole, {CONTAINED:.0%}, "
    f"in the other), else unseen; a true paraphrase in other words stays unseen."
)
_FOLDED = re.compile(r"[\W_]+")


def normalize(question: str) -> str:
    """The question without what does not distinguish it: NFKC, case, punctuation and runs of whitespace folded."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    return _FOLDED.sub(" ", folded).strip() or folded.strip()


@dataclass(frozen=True)
class Seen:
    """How well training knows a question.

    `nearest` is the closest training question and `row` its number from 1; both are None if nothing is alike.
    `similarity` lies between 0 and 1; 1 means equal after normalization.
    """

    grade: Grade
    nearest: str | None
    row: int | None
    similarity: float


class Overlap:
    """An index of training questions that grades other questions against them.

    A question is "seen" if it equals a training question after `normalize`, "near-seen" if at least NEAR similar to one, else "unseen".
    About 1 GB of memory at 200,000 questions; longer sets than MOST_GRAMS characters are compared by a fixed sample of their 5-grams.
    """

    def __init__(self, training_questions: Sequence[str]) -> None:
        self._questions = list(training_questions)
        texts = [normalize(question) for question in self._questions]
        self._first: dict[str, int] = {}
        for index, text in enumerate(texts):
            self._first.setdefault(text, index)
        self._index(texts)

    def grade(self, question: str) -> Seen:
        """Compare one question with all training questions."""
        text = normalize(question)
        if text in self._first:
            first = self._first[text]
            return Seen("seen", self._questions[first], first + 1, 1.0)
        index, similarity = self._nearest(text)
        if index is None:
            return Seen("unseen", None, None, 0.0)
        return Seen("near-seen" if similarity >= NEAR else "unseen", self._questions[index], index + 1, similarity)

    def _index(self, texts: list[str]) -> None:
        """Build the inverted index: `_grams` sorted and unique; the rows of gram i are `_rows[_starts[i]:_starts[i + 1]]`."""
        import numpy as np

        self._keep_every = 1 + sum(map(len, texts)) // MOST_GRAMS
        pairs = [np.empty(0, np.uint64)]
        for index, text in enumerate(texts):
            pairs.append((self._grams_of(text) << np.uint64(32)) | np.uint64(index))
        postings = np.concatenate(pairs)
        postings.sort()
        grams = (postings >> np.uint64(32)).astype(np.uint32)
        self._rows = postings.astype(np.uint32)
        self._grams, starts = np.unique(grams, return_index=True)
        self._starts = np.append(starts, len(grams))
        counts = np.diff(self._starts)
        self._rarity = np.log1p(len(texts) / counts) ** 2
        self._sizes = np.bincount(self._rows, minlength=len(texts))
        self._weights = np.bincount(self._rows, weights=np.repeat(self._rarity, counts), minlength=len(texts))

    def _grams_of(self, text: str) -> Any:
        """Sorted unique 32-bit hashes of a normalized text's 5-grams, as uint64; a very large index keeps a sample."""
        import numpy as np

        padded = f" {text} ".ljust(GRAM)
        codes = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        hashes = np.zeros(len(codes) - GRAM + 1, np.uint64)
        for offset in range(GRAM):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(hashes)]
        hashes = np.unique((hashes * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32))
        return hashes if self._keep_every == 1 else hashes[hashes % np.uint64(self._keep_every) == 0]

    def _nearest(self, text: str) -> tuple[int | None, float]:
        import numpy as np

        grams = self._grams_of(text).astype(np.uint32)
        if not len(self._grams) or not len(grams):
            return None, 0.0
        places = np.minimum(np.searchsorted(self._grams, grams), len(self._grams) - 1)
        known = places[self._grams[places] == grams]
        rarest = np.log1p(len(self._questions)) ** 2
        own = float(self._rarity[known].sum() + rarest * (len(grams) - len(known)))
        if not len(known):
            return None, 0.0
        rows = np.concatenate([self._rows[self._starts[each] : self._starts[each + 1]] for each in known])
        shared = np.bincount(rows, weights=np.repeat(self._rarity[known], np.diff(self._starts)[known]), minlength=len(self._questions))
        similarity = shared / (own + self._weights - shared)
        contained = shared / np.minimum(own, self._weights)
        long_enough = np.minimum(len(grams), self._sizes) * self._keep_every >= CONTAINED_GRAMS
        similarity = np.where(long_enough & (contained >= CONTAINED), np.maximum(similarity, contained), similarity)
        best = int(similarity.argmax())
        # below 1: only equal texts are the same question
        return best, min(float(similarity[best]), 0.999)


def graded(training_questions: Sequence[str], question: str) -> dict[str, Any]:
    """`Overlap.grade` as names and values; {"grade": "unknown"} if no training questions are recorded, for then nobody can tell."""
    return vars(Overlap(training_questions).grade(question)) if training_questions else {"grade": "unknown"}
