"""Reading loses nothing silently: every row is an edge or is counted, and unusable files say why."""

import gzip
from pathlib import Path

import networkx
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import DataError
from thrifty.graph.policies import Policies
from thrifty.graph.reading import Reading, number, read
from thrifty.graph.signed import SignedGraph

HEADER = "source,target,sign\n"


def read_lines(folder: Path, lines: str, policies: Policies | None = None) -> Reading:
    path = folder / "edges.csv"
    path.write_text(lines)
    return read(path, policies=policies)


def edges(graph: SignedGraph) -> set[tuple]:
    ends = graph.names[graph.source].tolist(), graph.names[graph.target].tolist()
    return set(zip(*ends, graph.sign.tolist(), strict=True))


def adds_up(reading: Reading) -> bool:
    counts = dict(reading.counts)
    return counts.pop("rows") == sum(counts.values()) and reading.counts["kept"] == reading.graph.num_edges


def test_texts_and_numbers_name_nodes(tmp_path: Path) -> None:
    texts = read_lines(tmp_path, HEADER + "b,a,1\na,c,-1\n").graph
    assert texts.names.tolist() == ["a", "b", "c"]
    assert edges(texts) == {("b", "a", 1), ("a", "c", -1)}
    numbers = read_lines(tmp_path, HEADER + "70,5,1\n5,9000000000,-1\n").graph
    assert numbers.names.dtype == np.int64
    assert edges(numbers) == {(70, 5, 1), (5, 9000000000, -1)}


def test_far_and_near_numbers_are_numbered_alike() -> None:
    source, target = pl.Series([5, 9, 5]), pl.Series([9, 7, 7])
    near = number(source, target)
    far = number(source * 10**12, target * 10**12)
    for one, other in zip(near[:2], far[:2], strict=True):
        assert one.tolist() == other.tolist()
    assert (near[2] * 10**12).tolist() == far[2].tolist()


def test_one_percent_of_garbage_is_counted_and_shown(tmp_path: Path) -> None:
    good = "".join(f"{one},{one + 1},{1 if one % 3 else -1}\n" for one in range(990))
    bad = "???,1,1\n5\n,,\n1,2,x\n6,7,1,8,9\n\n" + "8,,1\n" * 5
    reading = read_lines(tmp_path, HEADER + good + bad)
    assert adds_up(reading)
    assert reading.counts["kept"] == 990
    assert reading.counts["no target"] == 6
    said = "\n".join(reading.notes)
    assert "unreadable sign: 1 row left out (line 995: '1,2,x')" in said
    assert "no target: 6 rows left out" in said


def test_every_policy_and_what_it_touched_is_told(tmp_path: Path) -> None:
    reading = read_lines(tmp_path, HEADER + "a,a,1\na,b,0\nb,c,1\nb,c,1\nc,d,1\nc,d,-1\nd,e,-1\n")
    assert adds_up(reading)
    assert reading.counts == {"rows": 7, "kept": 3, "self_loops": 1, "zeros": 1, "duplicates": 1, "conflicts": 1}
    said = "\n".join(reading.notes)
    for words in ("self loops: 1 row", "zeros: 1 row", "duplicates: 1 row", "conflicts: 1 pair", "rules: duplicates="):
        assert words in said


@pytest.mark.parametrize(
    ("policies", "sign"),
    [(Policies(zeros="positive"), {("a", "b", 1)}), (Policies(zeros="negative"), {("a", "b", -1)})],
)
def test_zeros_can_stand_for_a_sign(tmp_path: Path, policies: Policies, sign: set) -> None:
    reading = read_lines(tmp_path, HEADER + "a,b,0\n", policies)
    assert edges(reading.graph) == sign
    assert adds_up(reading)


def test_a_threshold_parts_ratings(tmp_path: Path) -> None:
    reading = read_lines(tmp_path, "u,v,rating\na,b,1\na,c,5\nb,c,3\n", Policies(threshold=3.0))
    assert edges(reading.graph) == {("a", "b", -1), ("a", "c", 1)}
    assert reading.counts["zeros"] == 1
    assert any("above 3 is positive" in note for note in reading.notes)


def test_a_threshold_that_has_no_effect_is_told(tmp_path: Path) -> None:
    told = "threshold: 0.5 is not used, as the edges have signs"
    assert any(told in note for note in read_lines(tmp_path, HEADER + "a,b,1\na,c,-1\n", Policies(threshold=0.5)).notes)
    assert not any("threshold" in note for note in read_lines(tmp_path, HEADER + "a,b,1\na,c,-1\n").notes[:-1])


def test_signs_of_one_kind_are_read_and_told(tmp_path: Path) -> None:
    assert any("no sign can be learnt" in note for note in read_lines(tmp_path, HEADER + "a,b,1\nb,c,1\n").notes)
    hint = read_lines(tmp_path, "u,v,label\na,b,1\nb,c,0\n").notes
    assert any("set zeros to negative" in note for note in hint)


def test_nodes_without_an_edge_that_stays_are_left_out(tmp_path: Path) -> None:
    reading = read_lines(tmp_path, HEADER + "a,b,1\na,b,-1\nb,c,1\n", Policies(conflicts="drop"))
    assert reading.graph.names.tolist() == ["b", "c"]
    reading.graph.check()


@pytest.mark.parametrize(
    ("lines", "policies", "told"),
    [
        (HEADER + "a,b,1\nb,c,7\n", None, r"not \+1, -1 or 0, the first in line 3: 'b,c,7'; if these are ratings"),
        (HEADER + "a,b,x\nb,c,y\nc,d,1\n", None, r"2 of 3 rows are bad, more than the 50% allowed: unreadable sign"),
        (HEADER + "a,b,x\n", Policies(most_bad=1.0), "1 of 1 rows are bad"),
        (HEADER + "a,a,1\n", None, "none of 1 row.* is an edge"),
        (HEADER + "a,a,1\n", Policies(self_loops="error"), r"from a node to itself, the first in line 2"),
        (HEADER + "a,b,0\n", Policies(zeros="error"), "of zero, the first in line 2"),
        ("source,sign\na,1\n", None, "no column for the target"),
        ("", None, "is empty"),
    ],
)
def test_an_unusable_file_says_why(tmp_path: Path, lines: str, policies: Policies | None, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_lines(tmp_path, lines, policies)


def test_nodes_of_networkx_with_numbers_of_more_than_64_bits_are_kept() -> None:
    graph = networkx.DiGraph()
    graph.add_edge(2**70, 1, sign=1)
    graph.add_edge(2**70, 2, sign=-1)
    assert edges(read(graph).graph) == {(str(2**70), "1", 1), (str(2**70), "2", -1)}


def test_odd_signs_can_be_left_out(tmp_path: Path) -> None:
    reading = read_lines(tmp_path, HEADER + "a,b,1\nb,c,7\n", Policies(odd_signs="drop"))
    assert reading.counts["odd_signs"] == 1
    assert "odd signs: 1 row left out (line 3: 'b,c,7')" in reading.notes
    assert adds_up(reading)


def test_packing_changes_nothing(tmp_path: Path) -> None:
    lines = HEADER + "a,b,1\nb,c,-1\n"
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    assert edges(read(tmp_path / "x.csv.gz").graph) == edges(read_lines(tmp_path, lines).graph)


ROWS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([-1, 0, 1])), min_size=1, max_size=25
)


@given(ROWS, st.sampled_from(["sum", "drop"]), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_where_the_policy_does_not_ask(rows: list, conflicts: str, random) -> None:
    def told(rows: list) -> tuple:
        frame = pl.DataFrame(rows, schema=["source", "target", "sign"], orient="row")
        try:
            reading = read(frame, policies=Policies(conflicts=conflicts))
        except DataError:
            return ()
        assert adds_up(reading)
        reading.graph.check()
        return reading.graph.names.tolist(), edges(reading.graph), reading.counts

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert told(rows) == told(shuffled)


@pytest.mark.parametrize("other", [2**64, 2**70])
def test_a_node_of_networkx_that_is_no_number_of_64_bits_keeps_its_name(other: int) -> None:
    graph = networkx.DiGraph([(node, node + 1, {"sign": 1}) for node in range(2, 60)])
    graph.add_edge(other, 2, sign=-1)
    reading = read(graph)
    assert reading.graph.num_edges == reading.counts["rows"] == 59
    assert (str(other), "2", -1) in edges(reading.graph)
