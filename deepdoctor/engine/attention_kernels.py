"""Triton kernels of one decoding step: rotation, the cache, and attention over it."""

import triton
import triton.language as tl

from deepdoctor.engine.kernels import follow_on, placed


@triton.jit
def rotate_and_store(
    qkv, keys, values, cos, sin, positions, query_weight, key_weight, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, CONTEXT: tl.constexpr, NORMED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rotate query and key heads (Su et al. 2021), for Qwen3 after norming them; keys and values go into the cache. One program a head."""
    follow_on(OVERLAP)
    row, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + row)
    places = tl.arange(0, HALF)
    begin = qkv + (row * (HEADS + 2 * KV) + head) * 2 * HALF
    first = tl.load(begin + places).to(tl.float32)
    second = tl.load(begin + HALF + places).to(tl.float32)
    if head < HEADS + KV:
        if NORMED:
            scale = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / (2 * HALF) + eps)
            weight = query_weight
            if head >= HEADS:
                weight = key_weight
            first = first * scale * tl.load(weight + places).to(tl.float32)
            second = second * scale * tl.load(weight + HALF + places).to(tl.float32)
        cosine = tl.load(cos + position * HALF + places)
        sine = tl.load(sin + position * HALF + places)
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
    if head < HEADS:
        tl.store(begin + places, first)
        tl.store(begin + HALF + places, second)
    elif head < HEADS + KV:
        place = ((row * KV + head - HEADS) * CONTEXT + position) * 2 * HALF
        tl.store(keys + place + places, first)
        tl.store(keys + place + HALF + places, second)
    else:
        place = ((row * KV + head - HEADS - KV) * CONTEXT + position) * 2 * HALF
        tl.store(values + place + places, first)
        tl.store(values + place + HALF + places, second)


@triton.jit
def attend(
    qkv, keys, values, mixed, peaks, masses, positions, scale,
    HEADS: tl.constexpr, KV: tl.constexpr, WIDTH: tl.constexpr, CONTEXT: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Attention of one row's query heads that share a key head over a part of its cache (Dao 2023, flash decoding), not yet normalized."""
    follow_on(OVERLAP)
    row, kv, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row) + 1
    chunk = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    begin = part * chunk
    end = tl.minimum(begin + chunk, length)
    PER: tl.constexpr = HEADS // KV
    head, width = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    real = head < PER
    query = tl.load(qkv + (row * (HEADS + 2 * KV) + kv * PER + head[:, None]) * WIDTH + width[None, :], mask=real[:, None], other=0.0)
    cache = (row * KV + kv) * CONTEXT
    peak = tl.full([GROUP], float("-inf"), tl.float32)
    mass = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, WIDTH], tl.float32)
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < end
        key = tl.load(keys + (cache + place)[None, :] * WIDTH + width[:, None], mask=inside[None, :], other=0.0)
        score = tl.where(inside[None, :], tl.dot(query, key) * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        share = tl.exp(score - higher[:, None])
        shrink = tl.exp(peak - higher)
        value = tl.load(values + (cache + place)[:, None] * WIDTH + width[None, :], mask=inside[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(share.to(value.dtype), value)
        mass = mass * shrink + tl.sum(share, 1)
        peak = higher
    index = (row * HEADS + kv * PER + head) * SPLITS + part
    tl.store(mixed + index[:, None] * WIDTH + width[None, :], acc, mask=real[:, None])
    tl.store(peaks + index, peak, mask=real)
    tl.store(masses + index, mass, mask=real)


@triton.jit
def combine(
    mixed, peaks, masses, out, HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, PARTED: tl.constexpr, OVERLAP: tl.constexpr
):
    """The parts of `attend` as one, [rows, HEADS * WIDTH]. One program a head."""
    follow_on(OVERLAP)
    index = tl.program_id(0)
    row, head = index // HEADS, index % HEADS
    parts, width = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    peak = tl.load(peaks + index * SPLITS + parts)
    weight = tl.exp(peak - tl.max(peak, 0))
    mass = tl.sum(weight * tl.load(masses + index * SPLITS + parts), 0)
    acc = tl.load(mixed + (index * SPLITS + parts[:, None]) * WIDTH + width[None, :])
    place = row * HEADS * WIDTH + placed(head * WIDTH + width, HEADS * WIDTH, PARTED)
    tl.store(out + place, tl.sum(acc * weight[:, None], 0) / mass)
