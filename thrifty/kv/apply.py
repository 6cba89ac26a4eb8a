"""Turn a plan of bits into a cache."""

from thrifty.errors import SettingError
from thrifty.kv.blocks import Codec
from thrifty.kv.by_head import for_heads
from thrifty.kv.cache import CompressedCache, Prefill
from thrifty.kv.cost import WHOLE_BITS, has_bits
from thrifty.kv.job import KvJob
from thrifty.plan import Plan


def apply(plan: Plan, job: KvJob, prefill: Prefill = "exact") -> CompressedCache:
    """A fresh cache for `job.model` whose layers and heads spend the bits of `plan`; use one per batch of
    conversations.

    Raises `SettingError` where the plan is for another model, or leaves only some heads of a layer in 16 bits.
    """
    known = {job.part(layer, side) for layer in range(job.num_layers) for side in ("k", "v")}
    if unknown := sorted(plan.keep.keys() - known):
        raise SettingError(
            f"the plan names {unknown[0]}, which this model of {job.num_layers} layers does not have; "
            "use a plan that was made for this model"
        )
    codecs: list[Codec | None] = []
    for layer in range(job.num_layers):
        k_bits, v_bits = (_bits(plan, job, layer, side) for side in ("k", "v"))
        whole = [WHOLE_BITS in pair for pair in zip(k_bits, v_bits, strict=True)]
        if not has_bits(job.codec):
            codecs.append(job.codec)
        elif all(whole):
            codecs.append(None)
        elif any(whole):
            raise SettingError(f"layers.{layer}: all heads of a layer stay in 16 bits, or none; the plan says {k_bits}")
        else:
            codecs.append(for_heads(job.codec, k_bits, v_bits))
    return CompressedCache.of(job.model, codecs, prefill)


def _bits(plan: Plan, job: KvJob, layer: int, side: str) -> list[int]:
    name = job.part(layer, side)
    kept = plan.keep.get(name)
    if kept is None or kept.numel() != job.shape.kv_heads:
        found = "nothing" if kept is None else f"{kept.numel()} heads"
        raise SettingError(f"the plan holds {found} for {name}, the model has {job.shape.kv_heads} heads there")
    return [int(bits) for bits in kept.tolist()]
