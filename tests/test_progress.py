"""Progress: everything that goes in comes out, with or without a bar."""

from thrifty import progress


def test_a_track_yields_what_it_is_given() -> None:
    assert list(progress.silent(range(3), "reading", 3)) == [0, 1, 2]
    with progress.shown() as track:
        assert list(track(range(3), "reading", 3)) == [0, 1, 2]
