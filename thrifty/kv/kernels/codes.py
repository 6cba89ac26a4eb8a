# ruff: noqa: ANN001, ANN201, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""One block of codes in a step of decode attention (Triton): the pieces of `thrifty.kv.kernels.decode`.

Codes are the large operand of both products: tokens of keys and channels of values are the rows that a tensor core
takes by sixteen, query heads its eight columns. Column (g, m) is head m for the group g of value channels. Its scores
do not depend on g; they are there anyway, as a tensor core has no fewer than eight columns, and so the weights of a
column take the scale of their own group as they are.

A 16-bit half of a token's row of bytes is the unit of codes: field f of half h is channel (16 / bits) h + f. A product
takes one field of every half, or two where a token has only eight halves, so the query is split by field.
"""

from typing import no_type_check

import triton
import triton.language as tl

from thrifty.kv.kernels.fields import by_field, offset_of, unpacked

START = tl.constexpr(-1.0e20)  # a maximum of nothing
FAR = tl.constexpr(-1.0e30)  # a score that is not there; its weight beside START is 0
SHRINK = tl.constexpr(1 / 64)  # keeps query times scale far from the end of float16; a power of two changes nothing
LIFT = tl.constexpr(2.0)  # weights go up to 2**(4 + LIFT), which makes better use of float16's range below 1


@triton.jit
@no_type_check
def side_by_side(left, right):
    """[n, 8] and [n, 8] as [n, 16]."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (left.shape[0], 2 * left.shape[1]))


@triton.jit
@no_type_check
def one_above_the_other(upper, lower):
    """[8, n] and [8, n] as [16, n]."""
    return tl.reshape(tl.permute(tl.join(upper, lower), (2, 0, 1)), (2 * upper.shape[0], upper.shape[1]))


@triton.jit
@no_type_check
def in_products(parts, HALVES: tl.constexpr, FIELDS: tl.constexpr):
    """A tuple by field [n, halves] as a tuple by product."""
    if HALVES >= 16:
        return parts
    else:
        made = ()
        for index in tl.static_range(FIELDS // 2):
            made = made + (side_by_side(parts[2 * index], parts[2 * index + 1]),)
        return made


@triton.jit
@no_type_check
def codes_of(halves, HALVES: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Codes plus their offsets [tokens, 16 or more], a tuple by product."""
    parts = ()
    for field in tl.static_range(16 // BITS):
        parts = parts + (unpacked(halves, BITS, field, ASSEMBLY),)
    return in_products(parts, HALVES, 16 // BITS)


@triton.jit
@no_type_check
def place_of(row, index: tl.constexpr, HALVES: tl.constexpr, BITS: tl.constexpr):
    """The channel, and the offset of its codes, of a row of product `index`."""
    FIELDS: tl.constexpr = 16 // BITS
    if HALVES >= 16:
        return row * FIELDS + index, tl.full(row.shape, offset_of(BITS, index), tl.float32)
    else:
        is_right = row >= HALVES
        channel = row % HALVES * FIELDS + 2 * index + is_right.to(tl.int32)
        return channel, tl.where(is_right, offset_of(BITS, 2 * index + 1), offset_of(BITS, 2 * index))


@triton.jit
@no_type_check
def query_of(
    q, first, SHARED: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr
):
    """The query heads from head `first` on, [channels, columns] in float16, a tuple by product."""
    HALVES: tl.constexpr = DIM * BITS // 16
    ROWS: tl.constexpr = max(HALVES, 16)
    row = tl.arange(0, ROWS)
    member = tl.arange(0, COLUMNS) % PADDED
    parts = ()
    for index in tl.static_range(DIM // ROWS):
        channel, _ = place_of(row, index, HALVES, BITS)
        at = (first + member)[None, :] * DIM + channel[:, None]
        part = tl.load(q + at, mask=(member < SHARED)[None, :], other=0.0)
        parts = parts + ((part.to(tl.float32) * SHRINK).to(tl.float16),)
    return parts


@triton.jit
@no_type_check
def scores_of(
    query, halves, scale, low, COLUMNS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr
):
    """Keys times query [tokens, columns]; `scale` and `low` [channels]. What low and offsets add is the same for all
    tokens: sixteen rows of it are enough."""
    FIELDS: tl.constexpr = 16 // BITS
    HALVES: tl.constexpr = DIM // FIELDS
    ROWS: tl.constexpr = max(HALVES, 16)
    codes = codes_of(halves, HALVES, BITS, ASSEMBLY)
    scales = by_field(tl.reshape(scale.to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
    lows = by_field(tl.reshape(low.to(tl.float16), (1, HALVES, FIELDS)), FIELDS)
    scales, lows = in_products(scales, HALVES, FIELDS), in_products(lows, HALVES, FIELDS)
    row = tl.arange(0, ROWS)
    scores = tl.zeros((halves.shape[0], COLUMNS), tl.float32)
    constant = tl.zeros((16, COLUMNS), tl.float32)
    for index in tl.static_range(DIM // ROWS):
        _, offset = place_of(row, index, HALVES, BITS)
        folded = query[index] * tl.trans(scales[index])
        scores = tl.dot(codes[index], folded, scores)
        constant = tl.dot(tl.broadcast_to(lows[index], (16, ROWS)), query[index], constant)
        away = tl.broadcast_to((-offset).to(tl.float16)[None, :], (16, ROWS))
        constant = tl.dot(away, folded, constant)
    return scores + tl.max(constant, 0)[None, :]


@triton.jit
@no_type_check
def mixed_with(mixed, operand, halves, DIM: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """`mixed`, a tuple by product of [channels, columns], plus values times weights [tokens, columns].

    Offsets are taken off block by block: tensor cores cut off what they add, and over many blocks that would show in a
    sum of which little is left.
    """
    HALVES: tl.constexpr = DIM * BITS // 16
    ROWS: tl.constexpr = max(HALVES, 16)
    row = tl.arange(0, ROWS)
    total = tl.dot(tl.full((ROWS, operand.shape[0]), 1.0, tl.float16), operand)  # all rows are alike
    summed = ()
    for index in tl.static_range(DIM // ROWS):
        if HALVES >= 16:
            codes = unpacked(halves, BITS, index, ASSEMBLY)
        else:
            codes = one_above_the_other(
                unpacked(halves, BITS, 2 * index, ASSEMBLY), unpacked(halves, BITS, 2 * index + 1, ASSEMBLY)
            )
        _, offset = place_of(row, index, HALVES, BITS)
        summed = summed + (mixed[index] + (tl.dot(codes, operand) - offset[:, None] * total),)
    return summed


@triton.jit
@no_type_check
def by_column(x, PADDED: tl.constexpr):
    """What belongs to a group of channels [tokens, groups], for each of its columns [tokens, columns]."""
    wide = tl.broadcast_to(x[:, :, None], (x.shape[0], x.shape[1], PADDED))
    return tl.reshape(wide, (x.shape[0], x.shape[1] * PADDED))


@triton.jit
@no_type_check
def by_eight(x, COLUMNS: tl.constexpr):
    """[tokens, columns] summed to [8, columns], within a thread."""
    return tl.sum(tl.reshape(x, (x.shape[0] // 8, 8, COLUMNS)), 0)
