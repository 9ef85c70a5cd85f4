"""Drawing the next token of every row at once, on the device, as transformers' processors would: same filters, same order.

Order: repetition penalty (Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024). A row's random
numbers are drawn beforehand from its own generator, one a token, so that its text does not depend on who else is being written.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepdoctor.config import SamplingConfig

TEMPERATURE, TOP_P, TOP_K, MIN_P, PENALTY = range(5)


class Sampler:
    """What drawing needs to know of each slot, on the device: its settings, the tokens it has, and its random numbers.

    settings: [slots, 5] float32; seen: [slots, vocabulary], the tokens of prompt and text; uniform: [slots, longest] numbers in [0, 1).
    """

    def __init__(self, slots: int, vocabulary: int, longest: int, device: torch.device) -> None:
        # sums of many small probabilities need more than 24 bits; MPS has no 64-bit numbers
        self.precise = torch.float32 if device.type == "mps" else torch.float64
        # settings that draw something from any logits: free slots are drawn along where a graph serves more rows than there are
        self.settings = torch.tensor([0.0, 1.0, vocabulary, 0.0, 1.0], device=device).repeat(slots, 1)
        self.seen = torch.zeros(slots, vocabulary, dtype=torch.bool, device=device)
        self.uniform = torch.zeros(slots, longest, dtype=self.precise, device=device)

    def admit(self, slot: int, prompt: list[int], sampling: SamplingConfig) -> None:
        """Take a row in: its settings, the tokens of its prompt, and as many random numbers as it can need."""
        values = (sampling.temperature, sampling.top_p, sampling.top_k or self.seen.shape[1], sampling.min_p, sampling.repetition_penalty)
        self.settings[slot] = torch.tensor(values)
        self.seen[slot] = False
        self.seen[slot, torch.tensor(prompt, device=self.seen.device)] = True
        numbers = min(sampling.max_new_tokens, self.uniform.shape[1])
        generator = torch.Generator().manual_seed(sampling.seed)
        self.uniform[slot, :numbers] = torch.rand(numbers, generator=generator, dtype=torch.float64).to(self.precise)

    def move(self, source: int, target: int) -> None:
        """Give slot `target` what slot `source` holds."""
        for held in (self.settings, self.seen, self.uniform):
            held[target] = held[source]

    def draw(self, logits: Tensor, counts: Tensor, greedy: bool) -> Tensor:
        """One token for each of the first rows, [rows], from logits [rows, vocabulary]; counts [rows] tokens were drawn before.

        greedy: every row has temperature 0, which spares the sorting.
        """
        rows = len(logits)
        settings, seen = self.settings[:rows], self.seen[:rows]
        penalty = settings[:, PENALTY, None]
        scores = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        tokens = scores.argmax(-1)
        if not greedy:
            uniform = self.uniform[:rows].gather(1, counts.clamp(max=self.uniform.shape[1] - 1).unsqueeze(1))
            tokens = torch.where(settings[:, TEMPERATURE] == 0, tokens, self._drawn(scores, settings, uniform))
        seen.scatter_(1, tokens.unsqueeze(1), True)
        return tokens

    def _drawn(self, scores: Tensor, settings: Tensor, uniform: Tensor) -> Tensor:
        """Tokens [rows] by inverting the distribution function of what the filters leave, likeliest first."""
        scaled = scores / settings[:, TEMPERATURE, None].clamp(min=1e-6)
        ordered, places = scaled.sort(dim=-1, descending=True, stable=True)
        weakest = ordered.gather(1, settings[:, TOP_K, None].long().clamp(max=ordered.shape[1]) - 1)
        shares = ordered.masked_fill(ordered < weakest, -torch.inf).softmax(-1, dtype=self.precise)
        sums = running_sums(shares)
        top_p = settings[:, TOP_P, None]
        likely = (sums - shares < top_p) | (top_p == 1)
        kept = (likely & (shares > 0) & (shares >= settings[:, MIN_P, None] * shares[:, :1])).sum(-1, keepdim=True)
        place = (sums <= uniform * sums.gather(1, kept - 1)).sum(-1, keepdim=True)
        return places.gather(1, torch.minimum(place, kept - 1)).squeeze(1)


def running_sums(shares: Tensor, width: int = 256) -> Tensor:
    """Cumulative sums along the rows of `shares`, in blocks that a device can sum side by side, always in one order."""
    rows, length = shares.shape
    blocks = F.pad(shares, (0, -length % width)).view(rows, -1, width).cumsum(-1)
    before = blocks[:, :, -1].cumsum(-1) - blocks[:, :, -1]
    return (blocks + before.unsqueeze(-1)).view(rows, -1)[:, :length]
