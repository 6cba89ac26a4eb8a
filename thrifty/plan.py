"""What remains of each part, and the method that chose it: printed, saved, compared, applied later."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.errors import DataError
from thrifty.files import replacing

_FORMAT = "thrifty plan 1"
_EVIDENCE = "evidence/"


@dataclass(frozen=True)
class Plan:
    """For each part by name what is kept of it: 0 or 1, or a number of bits. `method` tells who chose and how.

    `evidence` holds what the decisions were read from or refer to, such as proposed edges and their probabilities; it
    decides nothing.
    """

    method: str
    keep: dict[str, Tensor]
    evidence: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a part."""
        width = max((len(name) for name in self.keep), default=0)
        lines = [f"  {name:<{width}}  {_summary(kept)}" for name, kept in self.keep.items()]
        return "\n".join([f"plan by {self.method}", *lines])

    def __eq__(self, other: object) -> bool:
        """Equal method and equal parts."""
        return isinstance(other, Plan) and self.method == other.method and not self.difference(other)

    def difference(self, other: "Plan") -> dict[str, str]:
        """The parts that differ: what this plan keeps and what `other` keeps, by name."""
        names = [*self.keep, *(name for name in other.keep if name not in self.keep)]
        result = {}
        for name in names:
            mine, yours = self.keep.get(name), other.keep.get(name)
            if mine is None or yours is None or mine.shape != yours.shape or not torch.equal(mine, yours):
                result[name] = f"{_summary(mine)} -> {_summary(yours)}"
        return result

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        with replacing(path) as temporary:
            save_file(
                {name: kept.contiguous() for name, kept in self.keep.items()}
                | {_EVIDENCE + name: tensor.contiguous() for name, tensor in self.evidence.items()},
                temporary,
                metadata={"format": _FORMAT, "method": self.method, "order": json.dumps(list(self.keep))},
            )

    @staticmethod
    def load(path: Path) -> "Plan":
        """Read what `save` wrote. Raises `DataError` for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise DataError(f"{path} is no plan: its format is {metadata.get('format')}, not '{_FORMAT}'")
                keep = {name: file.get_tensor(name) for name in json.loads(metadata["order"])}
                rest = [name for name in file.keys() if name.startswith(_EVIDENCE)]  # noqa: SIM118 -- no dictionary
                evidence = {name.removeprefix(_EVIDENCE): file.get_tensor(name) for name in rest}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a plan ({error}); give a file that Plan.save wrote") from error
        return Plan(metadata["method"], keep, evidence)


def _summary(kept: Tensor | None) -> str:
    if kept is None:
        return "absent"
    values, counts = kept.unique(return_counts=True)
    if set(values.tolist()) <= {0, 1}:
        return f"{int(kept.sum())} of {kept.numel()}"
    return ", ".join(f"{value:g} x {count}" for value, count in zip(values.tolist(), counts.tolist(), strict=True))
