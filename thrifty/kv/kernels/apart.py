# ruff: noqa: ANN001, ANN202, RUF005 -- Triton compiles this: no annotations, no unpacking of tuples
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
"""The closed blocks of a prefill by warps that work apart (Gluon, Hopper only): one warp copies, two groups of four
each treat the queries of one head; `thrifty.kv.kernels.prefill` has the mathematics and does the rest."""

from typing import no_type_check

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)


@gluon.jit
@no_type_check
def _copy(
    sources, rooms, bars, place, block, blocks,
    DIM: gl.constexpr, UNIT: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start copying a block into its stage once both groups of warps are done with what was there."""
    GROUPS: gl.constexpr = DIM // GROUP
    k, k_scales, k_low, v, v_scales, thin = sources
    k_room, ks_room, kl_room, v_room, vs_room, thin_room = rooms
    k_full, k_empty, v_full, v_empty = bars
    if block < blocks:
        stage = block % STAGES
        phase = (block // STAGES) & 1
        at = place + block
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), (UNIT + 1 + 8) * DIM * 2)
        tma.async_copy_global_to_shared(k, [at * UNIT, 0], k_full.index(stage), k_room.index(stage))
        tma.async_copy_global_to_shared(k_scales, [at, 0], k_full.index(stage), ks_room.index(stage))
        tma.async_copy_global_to_shared(k_low, [at, 0], k_full.index(stage), kl_room.index(stage))
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), UNIT * (DIM + GROUPS + 16) * 2)
        for group in gl.static_range(GROUPS):
            room = stage * GROUPS + group
            tma.async_copy_global_to_shared(v, [at * UNIT, group * GROUP], v_full.index(stage), v_room.index(room))
            tma.async_copy_global_to_shared(
                v_scales, [at * GROUPS + group, 0], v_full.index(stage), vs_room.index(room)
            )
        tma.async_copy_global_to_shared(thin, [at * UNIT, 0], v_full.index(stage), thin_room.index(stage))


@gluon.jit
@no_type_check
def _score(
    q_room, k_room, ks_room, kl_room, k_full, block,
    UNIT: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr, S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Start both products of the query with a block: with its codes, and with the lows."""
    stage = block % STAGES
    mbarrier.wait(k_full.index(stage), (block // STAGES) & 1)
    scale = ks_room.index(stage).load(S)
    operand = gl.convert_layout(q_room.load(S) * scale, gl.DotOperandLayout(0, S, 2))
    scores = warpgroup_mma(
        operand, k_room.index(stage).permute((1, 0)), gl.zeros([UNIT, UNIT], gl.float32, S), use_acc=False,
        is_async=True,
    )  # fmt: skip
    constant = warpgroup_mma(
        q_room, kl_room.index(stage).permute((1, 0)), gl.zeros([UNIT, 8], gl.float32, C), use_acc=False,
        is_async=True,
    )  # fmt: skip
    return scores, constant


@gluon.jit
@no_type_check
def _soften(scores, constant, best, C: gl.constexpr, ROW: gl.constexpr):
    """(weights, the new maximum, by what earlier sums shrink)."""
    column = gl.arange(0, 8, gl.SliceLayout(0, C))
    constant = gl.convert_layout(gl.sum(gl.where((column == 0)[None, :], constant, 0.0), 1), ROW)
    found = gl.maximum(best, gl.max(scores, 1) + constant)
    return gl.exp2(scores + (constant - found)[:, None]).to(gl.float16), found, gl.exp2(best - found)


@gluon.jit
@no_type_check
def _mix(
    weights, left, right, total, v_room, vs_room, thin_room, stage,
    GROUPS: gl.constexpr, S: gl.constexpr, O: gl.constexpr, T: gl.constexpr,
):  # fmt: skip
    """Start the products of weights with the values of a block."""
    scale = vs_room.index(stage * GROUPS).load(S)
    operand = gl.convert_layout(weights * scale, gl.DotOperandLayout(0, O, 2))
    left = warpgroup_mma(operand, v_room.index(stage * GROUPS), left, is_async=True)
    scale = vs_room.index(stage * GROUPS + GROUPS - 1).load(S)
    operand = gl.convert_layout(weights * scale, gl.DotOperandLayout(0, O, 2))
    right = warpgroup_mma(operand, v_room.index(stage * GROUPS + GROUPS - 1), right, is_async=True)
    operand = gl.convert_layout(weights, gl.DotOperandLayout(0, T, 2))
    total = warpgroup_mma(operand, thin_room.index(stage), total, is_async=True)
    return left, right, total


@gluon.jit
@no_type_check
def _attend(
    q, q_room, out, highest, sources, rooms, bars, place, q_head, factor, first, new, blocks,
    DIM: gl.constexpr, UNIT: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, COPIES: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """A consumer: UNIT queries, those of them that are real from `first` on and before `new`."""
    GROUPS: gl.constexpr = DIM // GROUP
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, UNIT, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, GROUP, 16])
    T: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16])
    C: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, S)
    k_room, ks_room, kl_room, v_room, vs_room, thin_room = rooms
    k_full, k_empty, v_full, v_empty = bars
    row = gl.arange(0, UNIT, ROW)
    channel = gl.arange(0, DIM, gl.SliceLayout(0, S))
    is_query = (first + row >= 0) & (first + row < new)
    at = (q_head * new + first + row)[:, None] * DIM + channel[None, :]
    query = gl.load(q + at, mask=is_query[:, None], other=0.0)
    q_room.store((query.to(gl.float32) * factor).to(gl.float16))
    fence_async_shared()
    best = gl.full([UNIT], -1.0e20, gl.float32, ROW)
    zero = gl.zeros([UNIT, GROUP], gl.float32, O)
    left = warpgroup_mma_init(zero)
    right = warpgroup_mma_init(zero)
    total = warpgroup_mma_init(gl.zeros([UNIT, 16], gl.float32, T))
    if COPIES:
        for block in gl.static_range(STAGES - 2):
            _copy(sources, rooms, bars, place, block, blocks, DIM, UNIT, GROUP, STAGES)
    if AHEAD:
        weights = gl.zeros([UNIT, UNIT], gl.float16, S)
        if blocks > 0:
            scores, constant = _score(q_room, k_room, ks_room, kl_room, k_full, 0, UNIT, DIM, STAGES, S, C)
            scores, constant = warpgroup_mma_wait(0, [scores, constant])
            mbarrier.arrive(k_empty.index(0), count=1)
            weights, best, _ = _soften(scores, constant, best, C, ROW)
        for block in range(blocks):
            stage = block % STAGES
            if COPIES:
                _copy(sources, rooms, bars, place, block + STAGES - 2, blocks, DIM, UNIT, GROUP, STAGES)
            after = gl.minimum(block + 1, blocks - 1)  # the last block once more changes nothing
            scores, constant = _score(q_room, k_room, ks_room, kl_room, k_full, after, UNIT, DIM, STAGES, S, C)
            mbarrier.wait(v_full.index(stage), (block // STAGES) & 1)
            left, right, total = _mix(
                weights, left, right, total, v_room, vs_room, thin_room, stage, GROUPS, S, O, T
            )
            scores, constant = warpgroup_mma_wait(3, [scores, constant])
            mbarrier.arrive(k_empty.index(after % STAGES), count=1, pred=block + 1 < blocks)
            weights, best, shrink = _soften(scores, constant, best, C, ROW)
            left, right, total = warpgroup_mma_wait(0, [left, right, total])
            mbarrier.arrive(v_empty.index(stage), count=1)
            wide = gl.convert_layout(shrink, gl.SliceLayout(1, O))[:, None]
            total = warpgroup_mma_init(total * gl.convert_layout(shrink, gl.SliceLayout(1, T))[:, None])
            left, right = warpgroup_mma_init(left * wide), warpgroup_mma_init(right * wide)
    else:
        for block in range(blocks):
            stage = block % STAGES
            phase = (block // STAGES) & 1
            if COPIES:
                _copy(sources, rooms, bars, place, block + STAGES - 2, blocks, DIM, UNIT, GROUP, STAGES)
            scores, constant = _score(q_room, k_room, ks_room, kl_room, k_full, block, UNIT, DIM, STAGES, S, C)
            scores, constant, left, right, total = warpgroup_mma_wait(0, [scores, constant, left, right, total])
            mbarrier.arrive(k_empty.index(stage), count=1)
            mbarrier.arrive(v_empty.index((block + STAGES - 1) % STAGES), count=1, pred=block > 0)
            weights, best, shrink = _soften(scores, constant, best, C, ROW)
            wide = gl.convert_layout(shrink, gl.SliceLayout(1, O))[:, None]
            left, right = left * wide, right * wide
            total = total * gl.convert_layout(shrink, gl.SliceLayout(1, T))[:, None]
            mbarrier.wait(v_full.index(stage), phase)
            left, right, total = _mix(
                weights, left, right, total, v_room, vs_room, thin_room, stage, GROUPS, S, O, T
            )
    left, right, total = warpgroup_mma_wait(0, [left, right, total])
    column = gl.arange(0, 16, gl.SliceLayout(0, T))[None, :]
    weight = gl.sum(gl.where(column == GROUPS, total, 0.0), 1)
    weight = gl.where(weight == 0, 1.0, weight)
    gl.store(highest + q_head * new + first + row, best + gl.convert_layout(gl.log2(weight), ROW), mask=is_query)
    row = gl.arange(0, UNIT, gl.SliceLayout(1, O))
    at = (q_head * new + first + row)[:, None] * DIM + gl.arange(0, GROUP, gl.SliceLayout(0, O))[None, :]
    is_query = ((first + row >= 0) & (first + row < new))[:, None]
    by = gl.convert_layout(weight, gl.SliceLayout(1, O))[:, None]
    low = gl.sum(gl.where(column == 0, total, 0.0), 1)
    value = (left + gl.convert_layout(low, gl.SliceLayout(1, O))[:, None]) / by
    gl.store(out + at, value.to(out.dtype.element_ty), mask=is_query)
    if GROUPS == 2:
        low = gl.sum(gl.where(column == 1, total, 0.0), 1)
        value = (right + gl.convert_layout(low, gl.SliceLayout(1, O))[:, None]) / by
        gl.store(out + at + GROUP, value.to(out.dtype.element_ty), mask=is_query)


@gluon.jit(do_not_specialize=["blocks", "slots", "tiles", "first", "start", "new", "sinks"])
@no_type_check
def see_codes(
    q, k, k_scales, k_low, v, v_scales, thin, out, highest,
    blocks, slots, tiles, first, start, new, sinks, factor,
    SHARED: gl.constexpr, DIM: gl.constexpr, UNIT: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """Programs as those of `prefill`, two query heads each; writes what they have seen so far."""
    GROUPS: gl.constexpr = DIM // GROUP
    STACKS: gl.constexpr = SHARED // 2
    program = gl.program_id(0)
    slot = program // (STACKS * tiles)
    head = (first + slot).to(gl.int64)
    own = (start + new - 1 - sinks + UNIT) // UNIT - 1 - program // STACKS % tiles
    q_head = head * SHARED + program % STACKS * 2
    at = sinks + own * UNIT - start
    closed = gl.maximum(gl.minimum(own, blocks), 0)
    q_room = gl.allocate_shared_memory(gl.float16, [2, UNIT, DIM], k.layout)
    k_room = gl.allocate_shared_memory(gl.float16, [STAGES, UNIT, DIM], k.layout)
    ks_room = gl.allocate_shared_memory(gl.float16, [STAGES, 1, DIM], k_scales.layout)
    kl_room = gl.allocate_shared_memory(gl.float16, [STAGES, 8, DIM], k_low.layout)
    v_room = gl.allocate_shared_memory(gl.float16, [STAGES * GROUPS, UNIT, GROUP], v.layout)
    vs_room = gl.allocate_shared_memory(gl.float16, [STAGES * GROUPS, 1, UNIT], v_scales.layout)
    thin_room = gl.allocate_shared_memory(gl.float16, [STAGES, UNIT, 16], thin.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()
    rooms = (k_room, ks_room, kl_room, v_room, vs_room, thin_room)
    bars = (k_full, k_empty, v_full, v_empty)
    sources = (k, k_scales, k_low, v, v_scales, thin)
    place = slot * slots
    gl.warp_specialize(
        [
            (_attend, (q, q_room.index(0), out, highest, sources, rooms, bars, place, q_head, factor, at, new, closed,
                       DIM, UNIT, GROUP, STAGES, True, AHEAD)),
            (_attend, (q, q_room.index(1), out, highest, sources, rooms, bars, place, q_head + 1, factor, at, new,
                       closed, DIM, UNIT, GROUP, STAGES, False, AHEAD)),
        ],
        [4],
        [256],
    )  # fmt: skip
