"""The same bits for every layer and head; layers can be left out."""

from dataclasses import dataclass

import torch

from thrifty.errors import SettingError
from thrifty.kv.cost import WHOLE_BITS
from thrifty.kv.job import KvJob
from thrifty.plan import Plan

_LADDER = ((8, 8), (8, 4), (4, 4), (4, 3), (4, 2), (3, 3), (3, 2), (2, 2))


@dataclass(frozen=True)
class Uniform:
    """The codec's own bits, or the most that fit where the job has a limit: keys first, which need them more.

    Layers in `skip_layers` (0 is the first, -1 the last) stay in 16 bits.
    """

    skip_layers: tuple[int, ...] = ()

    def plan(self, job: KvJob) -> Plan:
        """Bits per layer and head. Raises `SettingError` where nothing fits the limit or a layer does not exist."""
        skipped = set()
        for layer in self.skip_layers:
            if not -job.num_layers <= layer < job.num_layers:
                raise SettingError(f"Uniform: skip_layers={layer}; the model has layers 0 to {job.num_layers - 1}")
            skipped.add(layer % job.num_layers)
        own = (getattr(job.codec, "k_bits", WHOLE_BITS), getattr(job.codec, "v_bits", WHOLE_BITS))
        cheapest = None
        for k_bits, v_bits in _LADDER if job.has_limit else (own,):
            keep = {}
            for layer in range(job.num_layers):
                for side, bits in (("k", k_bits), ("v", v_bits)):
                    kept = WHOLE_BITS if layer in skipped else bits
                    keep[job.part(layer, side)] = torch.full((job.shape.kv_heads,), kept, dtype=torch.int32)
            if not job.has_limit or job.budget.fits(keep):
                return Plan(method=repr(self), keep=keep)
            cheapest = job.budget.spent(keep)
        raise SettingError(
            f"a budget of {job.budget.limit:.0f} {job.budget.unit} cannot be met: 2 bits cost {cheapest:.0f}; "
            "ask for at least that, or skip fewer layers"
        )
