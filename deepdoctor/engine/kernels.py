"""Triton kernels of one decoding step: linear layers that read each weight once for all rows and add each row's own low-rank term.

Rows are padded to ROWS, a power of two of at least 16 that the matrix units can take; what stands in the padding is never stored. Weights
are read where the loaded model has them: 16-bit, or bitsandbytes' NF4 with nested scales (Dettmers et al. 2023), unpacked in registers.

Of adapters the kernels get tables of addresses, [modules, ADAPTERS] int64, 0 where a module has none, and their number in memory, so that a
captured graph serves any adapters.
Their factors are float32; a product with them is split in three so that it keeps float32's precision on matrix units (tf32x3).
"""

import triton
import triton.language as tl


@triton.jit
def follow_on(OVERLAP: tl.constexpr):
    """Wait for the kernel before, and have the one behind set up meanwhile (programmatic dependent launch, Hopper and later)."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def placed(column, WIDTH: tl.constexpr, PARTED: tl.constexpr):
    """Where a column stands in a row: for NF4 products even columns stand before odd ones, as the two weights of a byte are used."""
    if PARTED:
        column = (column % 2) * (WIDTH // 2) + column // 2
    return column


@triton.jit
def rms_norm(x, weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PARTED: tl.constexpr, OVERLAP: tl.constexpr):
    """out = x / rms(x) * weight, one program a row (Zhang and Sennrich 2019)."""
    follow_on(OVERLAP)
    row = tl.program_id(0)
    places = tl.arange(0, BLOCK)
    inside = places < WIDTH
    values = tl.load(x + row * WIDTH + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / WIDTH + eps)
    weights = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + placed(places, WIDTH, PARTED), values * scale * weights, mask=inside)


@triton.jit
def lora_down(
    x, out, chosen, firsts, ranks, WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    ADAPTERS: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, PARTED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out [modules, SPLITS, ROWS, RANK]: one row times its adapter's first factor, a part of the width a program."""
    follow_on(OVERLAP)
    module, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rank_of = tl.arange(0, RANK)
    adapter = tl.load(chosen + row)
    if adapter >= 0:
        address = tl.load(firsts + module * ADAPTERS + adapter)
        factor = address.to(tl.pointer_type(tl.float32))
        used = (rank_of < tl.load(ranks + adapter)) & (address != 0)
        acc = tl.zeros([RANK], tl.float32)
        for start in range(0, CHUNK, BLOCK):
            within = start + tl.arange(0, BLOCK)
            columns = part * CHUNK + within
            inside = (within < CHUNK) & (columns < WIDTH)
            values = tl.load(x + row * WIDTH + placed(columns, WIDTH, PARTED), mask=inside, other=0.0).to(tl.float32)
            factors = tl.load(factor + rank_of[:, None] * WIDTH + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
            acc += tl.sum(factors * values[None, :], 1)
        tl.store(out + ((module * SPLITS + part) * ROWS + row) * RANK + rank_of, acc)


@triton.jit
def _adapted(
    acc, low, module, outs, chosen, seconds, ranks, scales, active,
    ADAPTERS: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """acc [BN, ROWS] plus each row's adapter term: second factor times what `lora_down` wrote."""
    rows, rank_of = tl.arange(0, ROWS), tl.arange(0, RANK)
    mine = tl.load(chosen + rows)
    lows = tl.zeros([RANK, ROWS], tl.float32)
    for part in tl.static_range(SPLITS):
        lows += tl.load(low + ((module * SPLITS + part) * ROWS + rows[None, :]) * RANK + rank_of[:, None])
    for adapter in range(tl.load(active)):
        address = tl.load(seconds + module * ADAPTERS + adapter)
        factor = address.to(tl.pointer_type(tl.float32))
        rank = tl.load(ranks + adapter)
        used = (rank_of < rank) & (address != 0)
        factors = tl.load(factor + outs[:, None] * rank + rank_of[None, :], mask=used[None, :], other=0.0)
        own = tl.where((mine == adapter)[None, :], lows, 0.0) * tl.load(scales + adapter)
        acc = tl.dot(factors, own, acc, input_precision="tf32x3")
    return acc


@triton.jit
def _product(x, count, weight, outs, WIDTH: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, acc):
    """acc [BN, ROWS] plus weight [outs, WIDTH] times x [ROWS, WIDTH], 16-bit weights."""
    rows = tl.arange(0, ROWS)
    for start in range(0, WIDTH, BK):
        columns = start + tl.arange(0, BK)
        tile = tl.load(weight + outs[:, None] * WIDTH + columns[None, :])
        values = tl.load(x + rows[None, :] * WIDTH + columns[:, None], mask=(rows < count)[None, :], other=0.0)
        acc = tl.dot(tile, values, acc)
    return acc


# Eight NF4 codes of four bytes become float16 levels by byte permutation: tables of the levels' low and high bytes, four levels a register.
_UNPACK: tl.constexpr = tl.constexpr(
    """
    {
    .reg .b32 c, u, m, n, a, b, s, l, h;
    and.b32 c, $4, 0x77777777;
    shr.u32 u, c, 16;
    shr.u32 m, $4, 3;
    and.b32 m, m, 0x11111111;
    shr.u32 n, m, 16;
    prmt.b32 a, 0x52339200, 0x00D4EA8D, c;
    prmt.b32 b, 0x68E02618, 0x00C9800D, c;
    prmt.b32 s, 0x0000FF00, 0, m;
    lop3.b32 l, a, b, s, 0xD8;
    prmt.b32 a, 0xB6B8B9BC, 0x00ADB1B4, c;
    prmt.b32 b, 0x3533312D, 0x3C393837, c;
    lop3.b32 h, a, b, s, 0xD8;
    prmt.b32 $0, l, h, 0x7351;
    prmt.b32 $2, l, h, 0x6240;
    prmt.b32 a, 0x52339200, 0x00D4EA8D, u;
    prmt.b32 b, 0x68E02618, 0x00C9800D, u;
    prmt.b32 s, 0x0000FF00, 0, n;
    lop3.b32 l, a, b, s, 0xD8;
    prmt.b32 a, 0xB6B8B9BC, 0x00ADB1B4, u;
    prmt.b32 b, 0x3533312D, 0x3C393837, u;
    lop3.b32 h, a, b, s, 0xD8;
    prmt.b32 $1, l, h, 0x7351;
    prmt.b32 $3, l, h, 0x6240;
    }
    """
)


@triton.jit
def _nf4_product(
    x, weight, scale8, scale32, offset, scale_levels, outs,
    WIDTH: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, acc,
):  # fmt: skip
    """acc [BN, ROWS] plus NF4 weight times x, float32 with its even columns before its odd ones.

    Two weights a byte, the first in the high half; a scale every 64 weights, itself 8-bit with a scale every 256.
    """
    rows, within = tl.arange(0, ROWS), tl.arange(0, 32)
    BLOCKS: tl.constexpr = BK // 64
    for start in tl.range(0, WIDTH // 64, BLOCKS, num_stages=3):
        blocks = start + tl.arange(0, BLOCKS)
        pairs = blocks[:, None] * 32 + within[None, :]
        packed = tl.load(weight + outs[:, None, None] * (WIDTH // 2) + pairs[None, :, :])
        first, second = tl.inline_asm_elementwise(_UNPACK, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)
        first, second = first.to(tl.float32), second.to(tl.float32)
        place = outs[:, None] * (WIDTH // 64) + blocks[None, :]
        scale = tl.load(scale_levels + tl.load(scale8 + place).to(tl.int32)) * tl.load(scale32 + place // 256) + offset
        for row in tl.static_range(COUNT):
            even = tl.load(x + row * WIDTH + pairs)
            odd = tl.load(x + row * WIDTH + WIDTH // 2 + pairs)
            sums = tl.sum(first * even[None, :, :] + second * odd[None, :, :], 2) * scale
            acc += tl.where((rows == row)[None, :], tl.sum(sums, 1)[:, None], 0.0)
    return acc


@triton.jit
def unpack_nf4(packed, scale8, scale32, offset, scale_levels, out, BLOCKS: tl.constexpr, OVERLAP: tl.constexpr):
    """NF4 weights as 16-bit numbers, BLOCKS times 64 of them a program."""
    follow_on(OVERLAP)
    blocks = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    pairs = blocks[:, None] * 32 + tl.arange(0, 32)[None, :]
    first, second = tl.inline_asm_elementwise(
        _UNPACK, "=r,=r,=r,=r,r", [tl.load(packed + pairs)], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
    )
    scale = tl.load(scale_levels + tl.load(scale8 + blocks).to(tl.int32)) * tl.load(scale32 + blocks // 256) + offset
    weights = tl.interleave(first.to(tl.float32), second.to(tl.float32)) * scale[:, None]
    tl.store(out + blocks[:, None] * 64 + tl.arange(0, 64)[None, :], weights)


@triton.jit
def _any_product(
    x, count, weight, scale8, scale32, offset, scale_levels, outs,
    WIDTH: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, NF4: tl.constexpr,
):  # fmt: skip
    """The product for either kind of weight. NF4: 0 for 16-bit weights, else the number of rows."""
    acc = tl.zeros([BN, ROWS], tl.float32)
    if NF4 > 0:
        acc = _nf4_product(x, weight, scale8, scale32, offset, scale_levels, outs, WIDTH, BK, ROWS, NF4, acc)
    else:
        acc = _product(x, count, weight, outs, WIDTH, BK, ROWS, acc)
    return acc


@triton.jit
def _linear_part(
    x, out, residual, weight, bias, scale8, scale32, offset, scale_levels, low, chosen, seconds, ranks, scales, active, count,
    module: tl.constexpr, block, before: tl.constexpr, TOTAL: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, ADAPTERS: tl.constexpr, RANK: tl.constexpr, SPLITS: tl.constexpr,
    NF4: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """BN outputs of one of the modules that share an input; its outputs stand at `before` in a row of TOTAL."""
    outs = block * BN + tl.arange(0, BN)
    rows = tl.arange(0, ROWS)
    acc = _any_product(x, count, weight, scale8, scale32, offset, scale_levels, outs, WIDTH, BK, BN, ROWS, NF4)
    if BIAS:
        acc += tl.load(bias + outs)[:, None].to(tl.float32)
    if ADAPTERS > 0:
        acc = _adapted(acc, low, module, outs, chosen, seconds, ranks, scales, active, ADAPTERS, RANK, ROWS, SPLITS)
    place = rows[None, :] * TOTAL + before + outs[:, None]
    held = (rows < count)[None, :] & (outs >= 0)[:, None]
    if RESIDUAL:
        acc += tl.load(residual + place, mask=held, other=0.0).to(tl.float32)
    tl.store(out + place, acc, mask=held)


@triton.jit(do_not_specialize=["count"])
def linear(
    x, out, residual, w0, w1, w2, b0, b1, b2, s0, s1, s2, t0, t1, t2, f0, f1, f2, scale_levels,
    low, chosen, seconds, ranks, scales, active, count,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    ADAPTERS: tl.constexpr, RANK: tl.constexpr, SPLITS: tl.constexpr, NF4: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Up to three linear layers of one input (N1 = N2 = 0 for one): out [ROWS, N0 + N1 + N2], with bias, adapter term and residual."""
    follow_on(OVERLAP)
    block = tl.program_id(0)
    TOTAL: tl.constexpr = N0 + N1 + N2
    if block < N0 // BN:
        _linear_part(x, out, residual, w0, b0, s0, t0, f0, scale_levels, low, chosen, seconds, ranks, scales, active, count,
                     0, block, 0, TOTAL, WIDTH, BN, BK, ROWS, ADAPTERS, RANK, SPLITS, NF4, BIAS, RESIDUAL)  # fmt: skip
    if N1 > 0:
        if (block >= N0 // BN) & (block < (N0 + N1) // BN):
            _linear_part(x, out, residual, w1, b1, s1, t1, f1, scale_levels, low, chosen, seconds, ranks, scales, active, count,
                         1, block - N0 // BN, N0, TOTAL, WIDTH, BN, BK, ROWS, ADAPTERS, RANK, SPLITS, NF4, BIAS, RESIDUAL)  # fmt: skip
        if block >= (N0 + N1) // BN:
            _linear_part(x, out, residual, w2, b2, s2, t2, f2, scale_levels, low, chosen, seconds, ranks, scales, active, count,
                         2, block - (N0 + N1) // BN, N0 + N1, TOTAL, WIDTH, BN, BK, ROWS, ADAPTERS, RANK, SPLITS,
                         NF4, BIAS, RESIDUAL)  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def gated(
    x, out, w0, w1, s0, s1, t0, t1, f0, f1, scale_levels, low, chosen, seconds, ranks, scales, active, count,
    N0: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    ADAPTERS: tl.constexpr, RANK: tl.constexpr, SPLITS: tl.constexpr, NF4: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out [ROWS, N0] = silu(gate) * up (Shazeer 2020), both layers of the same input."""
    follow_on(OVERLAP)
    outs = tl.program_id(0) * BN + tl.arange(0, BN)
    rows = tl.arange(0, ROWS)
    gate = _any_product(x, count, w0, s0, t0, f0, scale_levels, outs, WIDTH, BK, BN, ROWS, NF4)
    up = _any_product(x, count, w1, s1, t1, f1, scale_levels, outs, WIDTH, BK, BN, ROWS, NF4)
    gate = _adapted(gate, low, 0, outs, chosen, seconds, ranks, scales, active, ADAPTERS, RANK, ROWS, SPLITS)
    up = _adapted(up, low, 1, outs, chosen, seconds, ranks, scales, active, ADAPTERS, RANK, ROWS, SPLITS)
    held = (rows < count)[None, :] & (outs >= 0)[:, None]
    tl.store(out + rows[None, :] * N0 + placed(outs, N0, NF4 > 0)[:, None], gate * tl.sigmoid(gate) * up, mask=held)
