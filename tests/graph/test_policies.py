"""Repeated pairs: which row stays, and that nothing depends on chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import DataError, SettingError
from thrifty.graph.policies import Policies, once_each

KEY = np.array([5, 7, 5, 5, 7, 9])
SIGN = np.array([1, 1, -1, 1, 1, -1], dtype=np.int8)
TIME = np.array([3.0, 9.0, 4.0, 1.0, 2.0, 0.0])


@pytest.mark.parametrize(
    ("policies", "rows"),
    [
        (Policies(), [3, 4, 5]),
        (Policies(duplicates="first", conflicts="first"), [0, 1, 5]),
        (Policies(duplicates="newest", conflicts="newest"), [1, 2, 5]),
        (Policies(conflicts="sum"), [3, 4, 5]),
        (Policies(conflicts="drop"), [4, 5]),
    ],
)
def test_the_row_that_stays_is_the_one_that_the_policy_names(policies: Policies, rows: list[int]) -> None:
    repeated = once_each(KEY, SIGN, TIME, policies)
    assert np.flatnonzero(repeated.stays).tolist() == rows
    assert (~repeated.stays).sum() == repeated.num_duplicates + repeated.num_conflicts
    assert repeated.num_pairs_in_conflict == 1
    assert repeated.num_pairs_gone == (policies.conflicts == "drop")


def test_a_tied_sum_drops_the_pair() -> None:
    repeated = once_each(np.array([1, 1, 2]), np.array([1, -1, 1], dtype=np.int8), None, Policies(conflicts="sum"))
    assert repeated.stays.tolist() == [False, False, True]
    assert (repeated.num_conflicts, repeated.num_pairs_gone) == (2, 1)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1, 1]), st.integers(0, 3)), min_size=1, max_size=30),
    st.sampled_from(["last", "first", "newest"]),
    st.sampled_from(["last", "first", "newest", "sum", "drop"]),
)
def test_every_pair_stays_once_at_most_and_every_row_is_counted(rows: list, duplicates: str, conflicts: str) -> None:
    key, sign, time = (np.array(column) for column in zip(*rows, strict=True))
    policies = Policies(duplicates=duplicates, conflicts=conflicts)
    repeated = once_each(key, sign.astype(np.int8), time.astype(float), policies)
    kept = key[repeated.stays]
    assert len(np.unique(kept)) == len(kept) == len(np.unique(key)) - repeated.num_pairs_gone
    assert len(key) == len(kept) + repeated.num_duplicates + repeated.num_conflicts


def test_policies_refuse_what_cannot_be_followed() -> None:
    with pytest.raises(DataError, match=r"told more than once .*good rows 1, 4"):
        once_each(KEY, SIGN, TIME, Policies(duplicates="error"))
    with pytest.raises(DataError, match="told with both signs"):
        once_each(KEY, SIGN, TIME, Policies(conflicts="error"))
    with pytest.raises(SettingError, match="no times"):
        once_each(KEY, SIGN, None, Policies(conflicts="newest"))
    with pytest.raises(SettingError, match="most_bad"):
        Policies(most_bad=2.0)
    with pytest.raises(SettingError, match="threshold"):
        Policies(threshold=float("nan"))
