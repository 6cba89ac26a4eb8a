"""Graphs by name, with what is known of them from their publishers."""

import pytest

from thrifty import data
from thrifty.errors import DataError, SettingError
from thrifty.graph.known import NAMES, load


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "loops"),
    [
        ("bitcoin-alpha", 3_783, 24_186, 0),
        ("bitcoin-otc", 5_881, 35_592, 0),
        ("wiki-elec", 7_115, 103_689, 0),
        ("wiki-rfa", 11_017, 170_335, 0),
        ("slashdot", 82_140, 549_202, 0),
        ("epinions", 131_580, 840_799, 573),
    ],
)
def test_known_graphs_have_the_published_counts(name: str, nodes: int, edges: int, loops: int) -> None:
    if not data.is_here(name):
        pytest.skip(f"{name} is not on this machine")
    reading = load(name)
    assert (reading.graph.num_nodes, reading.graph.num_edges) == (nodes, edges)
    assert reading.counts["self_loops"] == loops
    assert reading.origin == name
    assert any("self loops" in note for note in reading.notes) == bool(loops)


def test_every_known_graph_is_a_data_set() -> None:
    assert set(NAMES) <= set(data.SETS)


def test_without_an_origin_the_graph_is_synthetic_and_says_so() -> None:
    reading = load()
    assert "synthetic" in reading.origin
    assert reading.notes[0].startswith("SYNTHETIC")
    assert load(seed=1).graph.num_edges != reading.graph.num_edges


def test_a_missing_graph_says_how_to_get_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THRIFTY_DATA", str(tmp_path))
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    with pytest.raises(DataError, match="thrifty data get bitcoin-otc"):
        load("bitcoin-otc")


def test_a_wrong_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(SettingError, match=r"no graph 'bitcoin-otcs'; did you mean bitcoin-otc\?"):
        load("bitcoin-otcs")
    with pytest.raises(SettingError, match="graphs with a name are bitcoin-alpha"):
        load("zzz")
    with pytest.raises(DataError, match="no file"):
        load("zzz.csv")
