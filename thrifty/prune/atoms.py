"""Which positions live or die together: union-find over numbered positions, resolved all at once in NumPy.

An *atom* is one position along one dimension of one parameter, such as row 3 of a convolution's weight. Rules join
atoms and freeze them while they walk through a network; `roots` then names each class by its smallest member.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Atoms = NDArray[np.int64]
NONE = -1
"""What stands in an array of atoms where nothing can go."""


@dataclass
class Union:
    """Atoms, what joins them, and what keeps them from going."""

    size: int = 0
    _joined: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    _frozen: list[tuple[Atoms, str]] = field(default_factory=list)
    _tied: list[tuple[Atoms, str]] = field(default_factory=list)

    def new(self, count: int) -> Atoms:
        """`count` atoms that nothing joins yet."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def join(self, first: Atoms, second: Atoms, reason: str = "") -> None:
        """The atoms at equal places of two arrays (broadcast) live or die together; NONE joins nothing."""
        first, second = np.broadcast_arrays(first, second)
        both = (first >= 0) & (second >= 0) & (first != second)
        if both.any():
            self._joined.append((first[both], second[both]))
            if reason:
                self._tied.append((first[both], reason))

    def freeze(self, atoms: Atoms, reason: str) -> None:
        """None of these atoms may go, and why."""
        real = np.unique(atoms[atoms >= 0])
        if len(real):
            self._frozen.append((real, reason))

    def roots(self) -> Atoms:
        """For every atom the smallest atom of its class."""
        roots = np.arange(self.size, dtype=np.int64)
        if not self._joined:
            return roots
        first = np.concatenate([pair[0] for pair in self._joined])
        second = np.concatenate([pair[1] for pair in self._joined])
        while True:
            low, high = np.minimum(roots[first], roots[second]), np.maximum(roots[first], roots[second])
            apart = low != high
            if not apart.any():
                return roots
            np.minimum.at(roots, high[apart], low[apart])
            while (shorter := roots[roots]).tobytes() != roots.tobytes():
                roots = shorter

    def reasons(self, roots: Atoms) -> dict[int, str]:
        """For each class that may not go (by its root) the first reason."""
        return _first(self._frozen, roots)

    def ties(self, roots: Atoms) -> dict[int, str]:
        """For each class that a rule tied together for a reason, the first reason."""
        return _first(self._tied, roots)


def _first(noted: list[tuple[Atoms, str]], roots: Atoms) -> dict[int, str]:
    found: dict[int, str] = {}
    for atoms, reason in noted:
        for root in np.unique(roots[atoms]).tolist():
            found.setdefault(root, reason)
    return found
