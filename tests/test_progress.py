"""Progress: everything that goes in comes out, with or without a bar."""

import pytest

from thrifty import progress


def test_a_track_yields_what_it_is_given() -> None:
    assert list(progress.silent(range(3), "reading", 3)) == [0, 1, 2]
    with progress.shown() as track:
        assert list(track(range(3), "reading", 3)) == [0, 1, 2]


def test_a_bar_is_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.shown() as track:
        list(track(range(3), "reading", 3))
    assert capfd.readouterr() == ("", "")
