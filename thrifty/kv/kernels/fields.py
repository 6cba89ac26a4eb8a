# ruff: noqa: ANN001, ANN201, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false
"""Codes of 2, 4 or 8 bits as float16 numbers, two of them with one or two operations on a 32-bit word (Triton).

`no_type_check` keeps the checker of shapes, which the tests install, off what Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.constexpr_function
@no_type_check
def placed_at(bits, field):
    """The bit of a float16 mantissa where a field is laid: where the fewest shifts do and the offset stays small."""
    return {2: (6, 8, 4, 6, 8, 4, 6, 8), 4: (4, 4, 4, 4), 8: (2, 2)}[bits][field]


@triton.constexpr_function
@no_type_check
def offset_of(bits, field):
    """What is added to a code by its place in the mantissa."""
    return float(2 ** (10 - placed_at(bits, field)))


@triton.constexpr_function
@no_type_check
def ptx(bits, field):
    """PTX for a field of two halves: shift it to its place, cut it out, set the exponent."""
    place = placed_at(bits, field)
    mask, exponent = ((1 << bits) - 1) << place, (25 - place) << 10
    shift = place - bits * field
    move = f"{'shl' if shift > 0 else 'shr'}.b32 t, $1, {abs(shift)};" if shift else "mov.b32 t, $1;"
    return f"{{ .reg .b32 t; {move} lop3.b32 $0, t, {mask * 0x10001}, {exponent * 0x10001}, 0xEA; }}"


@triton.jit
@no_type_check
def unpacked(halves, BITS: tl.constexpr, FIELD: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Field `FIELD` of each half as float16, `offset_of` added."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(ptx(BITS, FIELD), "=r,r", [halves], dtype=tl.float16, is_pure=True, pack=2)
    else:
        code = (halves.to(tl.int32) >> (BITS * FIELD)) & ((1 << BITS) - 1)
        return (code.to(tl.float32) + offset_of(BITS, FIELD)).to(tl.float16)


@triton.jit
@no_type_check
def by_field(x, COUNT: tl.constexpr):
    """The last axis, of length `COUNT` (1, 2, 4 or 8), as a tuple."""
    if COUNT == 1:
        return (tl.reshape(x, (x.shape[0], x.shape[1])),)
    else:
        if COUNT == 2:
            return tl.split(x)
        else:
            even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], COUNT // 2, 2)))
            left = by_field(even, COUNT // 2)
            right = by_field(odd, COUNT // 2)
            both = ()
            for index in tl.static_range(COUNT // 2):
                both = both + (left[index], right[index])
            return both


@triton.jit
@no_type_check
def scaled(parts, shrink, COUNT: tl.constexpr):
    """Every tensor of a tuple times `shrink`."""
    scaled = ()
    for index in tl.static_range(COUNT):
        scaled = scaled + (parts[index] * shrink,)
    return scaled


@triton.jit
@no_type_check
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tuple of `COUNT` tensors of zeros."""
    made = ()
    for _ in tl.static_range(COUNT):
        made = made + (tl.zeros((ROWS, COLUMNS), tl.float32),)
    return made
