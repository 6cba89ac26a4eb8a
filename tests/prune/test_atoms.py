"""Union-find: joined atoms share a root, others do not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from thrifty.prune.atoms import NONE, Union


@given(st.integers(1, 40), st.data())
def test_roots_are_those_of_a_union_find_one_pair_at_a_time(count, data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60))
    union = Union()
    union.new(count)
    expected = list(range(count))
    for first, second in pairs:
        union.join(np.array([first]), np.array([second]))
        low, high = sorted((expected[first], expected[second]))
        expected = [low if root == high else root for root in expected]
    assert union.roots().tolist() == expected


def test_nothing_joins_no_atom():
    union = Union()
    atoms = union.new(3)
    union.join(atoms, np.array([NONE, 0, NONE]))
    assert union.roots().tolist() == [0, 0, 2]


def test_a_class_has_the_first_reason_of_any_of_its_atoms():
    union = Union()
    atoms = union.new(4)
    union.join(atoms[:2], atoms[1:3], "tied")
    union.freeze(atoms[2:3], "first")
    union.freeze(atoms, "second")
    roots = union.roots()
    assert union.reasons(roots) == {0: "first", 3: "second"}
    assert union.ties(roots) == {0: "tied"}
