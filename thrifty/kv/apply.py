"""Turn a plan of bits into a cache."""

from thrifty.errors import SettingError
from thrifty.kv.blocks import Codec
from thrifty.kv.cache import CompressedCache, Prefill
from thrifty.kv.cost import WHOLE_BITS, has_bits, with_bits
from thrifty.kv.job import KvJob
from thrifty.plan import Plan


def apply(plan: Plan, job: KvJob, prefill: Prefill = "exact") -> CompressedCache:
    """A fresh cache for `job.model` whose layers spend the bits of `plan`; use one per batch of conversations.

    Raises `SettingError` where the plan is for another model or gives the heads of one layer different bits.
    """
    codecs: list[Codec | None] = []
    for layer in range(job.num_layers):
        k_bits, v_bits = (_bits(plan, job, layer, side) for side in ("k", "v"))
        if not has_bits(job.codec):
            codecs.append(job.codec)
        elif WHOLE_BITS in (k_bits, v_bits):
            codecs.append(None)
        else:
            codecs.append(with_bits(job.codec, k_bits, v_bits))
    return CompressedCache.of(job.model, codecs, prefill)


def _bits(plan: Plan, job: KvJob, layer: int, side: str) -> int:
    name = job.part(layer, side)
    kept = plan.keep.get(name)
    if kept is None or kept.numel() != job.shape.kv_heads:
        found = "nothing" if kept is None else f"{kept.numel()} heads"
        raise SettingError(f"the plan holds {found} for {name}, the model has {job.shape.kv_heads} heads there")
    values = set(kept.tolist())
    if len(values) > 1:
        raise SettingError(f"{name}: heads of one layer must have equal bits, the plan says {sorted(values)}")
    return int(values.pop())
