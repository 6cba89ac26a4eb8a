"""What is wrong with a command of signed graphs is one clear line and status 2, and nothing is written or replaced."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from thrifty import data

QUICK = ("--set", "reach=2")
FILES = {
    "no_sign.csv": "source,target,colour\n1,2,red\n2,3,blue\n",
    "seven.csv": "source,target,sign\n1,2,1\n2,3,7\n3,4,-1\n",
    "empty.csv": "",
    "header.csv": "source,target,sign\n",
    "positive.csv": "source,target,sign\n" + "".join(f"{node},{node + 1},1\n" for node in range(60)),
    "garbage.csv": "source,target,sign\n" + "x\n" * 30 + "1,2,1\n2,1,-1\n",
    "few.csv": "source,target,sign\n1,2,1\n2,3,-1\n3,1,1\n",
    "pairs.csv": "source,target\n1,2\n",
}


@pytest.fixture
def place(tmp_path: Path, trust: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands run, with files that are wrong, a model that is none, and a good graph."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "shards").mkdir()
    pl.DataFrame({"source": [1], "target": [2]}).write_parquet(tmp_path / "shards" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(thrifty, place: Path):
    """Run a command that must fail; return its one line."""

    def run(*words: object) -> str:
        before = contents(place)
        status, out, error = thrifty(*words)
        assert (status, out) == (2, "")
        assert error.count("\n") == 1, error
        assert error.startswith("thrifty: ")
        assert contents(place) == before
        return error

    return run


WRONG_EDGES = [
    ("no_sign.csv", "no column for the sign; found 'source', 'target', 'colour'"),
    ("seven.csv", "the first in line 3: '2,3,7'"),
    ("empty.csv", "empty.csv is empty (0 bytes)"),
    ("header.csv", "has a header and no rows"),
    ("absent.csv", "there is no file 'absent.csv'"),
    ("bitcoin-otx", "did you mean bitcoin-otc?"),
    ("garbage.csv", "30 of 32 rows are bad"),
    ("shards", "has no column for the sign; found 'source', 'target'"),
    ("other.safetensors", "is no text"),
]


@pytest.mark.parametrize(("edges", "told"), WRONG_EDGES, ids=[edges for edges, _ in WRONG_EDGES])
@pytest.mark.parametrize(
    "words", [("fit", "-o", "model"), ("evaluate", "--json", "out.json"), ("augment", "-o", "new.csv")], ids=" ".join
)
def test_an_unusable_file_is_one_clear_line(refused, edges: str, words: tuple[str, ...], told: str) -> None:
    command, *others = words
    assert told in refused(command, edges, *others)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fit positive.csv -o model", "all 60 edges are positive"),
        ("evaluate positive.csv", "all 60 edges are positive"),
        ("augment positive.csv -o new.csv", "all 60 edges are positive"),
        ("evaluate few.csv", "both signs are needed"),
        ("fit trust.csv", "Missing option '-o'"),
        ("fit trust.csv -o model --scorer nope", "gat, gcn, masked_gnn, sdgnn, sgcn, stack, triads"),
        ("fit trust.csv -o model --scorer triad", "did you mean triads?"),
        ("fit trust.csv -o model --augment nope", "drop_edge, sga"),
        ("augment trust.csv -o new.csv --method nope", "drop_edge, sga"),
        ("evaluate trust.csv --also nope", "graph has no scorer nope; it has gat, gcn"),
        ("evaluate trust.csv --also triads:reach=7", "use one of 2, 3"),
        ("evaluate trust.csv --also triads:reach", "field=value"),
        ("evaluate trust.csv --split nope", "random, sga (all five official splits), sga:1 to sga:5, temporal, cold"),
        ("evaluate trust.csv --split sga:9", "there is no split 'sga:9'; use one of random"),
        ("evaluate trust.csv --split sga", "trust.csv is none of them"),
        ("evaluate trust.csv --split sga:1", "SGA's splits are of bitcoin-alpha, bitcoin-otc"),
        ("evaluate trust.csv --split temporal", "needs times, and the graph has none"),
        ("evaluate --split sga:1", "synthetic (seed 0) is none of them"),
        ("evaluate trust.csv --splits 0", "'--splits': 0 is not in the range x>=1"),
        ("evaluate trust.csv --seeds 0", "'--seeds': 0 is not in the range x>=1"),
        ("evaluate trust.csv --seed -1", "'--seed'"),
        ("evaluate trust.csv --curriculum", "a curriculum needs a scorer such as sgcn"),
        ("fit trust.csv -o model --set reach=4", "Triads: reach=4; use one of 2, 3"),
        ("fit trust.csv -o model --set nope=4", "it has reach, strength, max_degree, max_edges"),
        ("fit trust.csv -o model --augment sga --set nope=4", "it has scorer, delete_positive"),
        ("fit trust.csv -o model --policy nope=1", "it has duplicates, conflicts, self_loops, zeros"),
        ("fit trust.csv -o model --policy conflicts=maybe", "use one of last, first, newest, sum, drop, error"),
        ("fit trust.csv -o model --policy conflicts", "--policy conflicts: use --policy field=value"),
        ("fit trust.csv -o model --sign polarity", "no column 'polarity' for the sign; it has 'source', 'target'"),
        ("fit trust.csv -o shards", "shards is a folder"),
        ("augment trust.csv -o new.txt", "its suffix is '.txt'; use .csv, .csv.gz"),
        ("augment trust.csv -o new.csv --keep some", "budget some"),
        ("augment trust.csv -o new.csv --keep 0%", "budget 0%"),
        ("augment trust.csv -o new.csv --deleted ./new.csv --method drop_edge", "a file each"),
        ("augment trust.csv -o new.csv --save-plan new.csv --method drop_edge", "a file each"),
        ("predict absent pairs.csv -o signs.csv", "absent cannot be read as a model"),
        ("predict trust.csv pairs.csv -o signs.csv", "trust.csv cannot be read as a model"),
        ("predict other.safetensors pairs.csv -o signs.csv", "is no signed-graph model"),
        ("predict absent shards -o signs", "absent cannot be read as a model"),
        ("predict other.safetensors shards -o signs", "is no signed-graph model"),
        ("predict other.safetensors shards -o signs --source target", "are for a file"),
        ("audit trust.csv", "trust.csv cannot be read as a model"),
        ("audit other.safetensors few.csv -o ranked.csv", "is no signed-graph model"),
        ("balance absent.csv pairs.csv -o out", "there is no file 'absent.csv'"),
        ("balance trust.csv absent.csv -o out", "there is no file 'absent.csv'"),
        ("balance trust.csv pairs.csv -o out --shards 5", "5 shards of 1 row; use 1 to 1"),
        ("balance trust.csv pairs.csv -o out --shards 0", "'--shards': 0 is not in the range x>=1"),
        ("balance trust.csv pairs.csv -o out --workers 0", "'--workers': 0 is not in the range x>=1"),
        ("predict other.safetensors pairs.csv -o a.csv --workers -3", "'--workers': -3 is not in the range x>=1"),
        ("predict other.safetensors pairs.csv -o a.csv --workers 2", "a folder of Parquet, and pairs.csv is none"),
        ("balance trust.csv shards -o out --shards 2", "--shards 2 cuts a file, and shards is a folder"),
        ("audit other.safetensors --most 0", "'--most': 0 is not in the range x>=1"),
        ("balance trust.csv pairs.csv -o shards", "shards already holds files"),
        ("fit trust.csv -o model --json trust.csv", "trust.csv is there already and is no result that --json wrote"),
        ("fit trust.csv -o one.json --json ./one.json", "--json one.json would write over '-o' / '--output', one.json"),
        ("predict new.json pairs.csv -o signs.csv --json new.json", "--json new.json would write over 'MODEL'"),
        ("predict other.safetensors pairs.csv -o a.csv --json pairs.csv", "pairs.csv is there already"),
        ("augment trust.csv -o a.csv --method drop_edge --json a.deleted.csv", "a file each"),
        ("nope", "No such command 'nope'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line_and_nothing_is_written(refused, words: str, told: str) -> None:
    assert told in refused(*words.split())


def test_a_known_graph_that_is_not_here_is_named_with_the_way_to_get_it(refused, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THRIFTY_DATA", str(tmp_path / "shards"))
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "shards")
    assert "thrifty data get bitcoin-otc" in refused("fit", "bitcoin-otc", "-o", "model")


OUTPUTS = {
    "fit trust.csv -o out.csv": "out.csv",
    "predict model pairs.csv -o out.csv": "out.csv",
    "audit model -o out.csv": "out.csv",
    "augment trust.csv --method drop_edge -o out.csv": "out.csv",
    "augment trust.csv --method drop_edge -o out.csv --deleted ": "gone.csv",
    "augment trust.csv --method drop_edge -o out.csv --save-plan ": "plan",
    "augment trust.csv --method drop_edge -o new.csv": "new.deleted.csv",
}


@pytest.mark.parametrize(("words", "mine"), OUTPUTS.items())
def test_no_file_is_replaced_unless_asked(thrifty, refused, place: Path, words: str, mine: str) -> None:
    assert thrifty("fit", "trust.csv", "-o", "model", *QUICK)[0] == 0
    (place / mine).write_text("mine")
    command = [*words.split(), mine] if words.endswith(" ") else words.split()
    assert f"{mine} is there already; name another file or add --overwrite" in refused(*command)
    assert thrifty(*command, "--overwrite")[0] == 0
    assert (place / mine).read_bytes() != b"mine"


def test_the_folder_of_results_is_not_replaced_unless_asked(thrifty, refused, place: Path) -> None:
    assert thrifty("fit", "trust.csv", "-o", "model", *QUICK)[0] == 0
    assert thrifty("fit", "trust.csv", "-o", "other", "--set", "reach=2", "--set", "strength=0.01")[0] == 0
    assert thrifty("predict", "model", "shards", "-o", "signs")[0] == 0
    before = (place / "signs" / "a.parquet").read_bytes()
    assert "results of another job" in refused("predict", "other", "shards", "-o", "signs")
    assert thrifty("predict", "other", "shards", "-o", "signs", "--overwrite")[0] == 0
    assert (place / "signs" / "a.parquet").read_bytes() != before


@pytest.mark.parametrize("command", ["predict model shards", "balance trust.csv shards"])
def test_pairs_are_never_replaced_by_results_even_if_asked(thrifty, refused, command: str) -> None:
    assert thrifty("fit", "trust.csv", "-o", "model", *QUICK)[0] == 0
    assert "holds the pairs themselves" in refused(*command.split(), "-o", "shards", "--overwrite")


def test_an_audit_of_a_stranger_graph_is_refused(thrifty, refused, place: Path) -> None:
    assert thrifty("fit", "trust.csv", "-o", "model", *QUICK)[0] == 0
    (place / "strangers.csv").write_text("source,target,sign\nann,bob,1\nbob,ann,-1\n")
    assert "no edge is between nodes that the model knows" in refused("audit", "model", "strangers.csv", "-o", "a.csv")


def test_a_model_that_was_cut_off_is_refused(thrifty, refused, place: Path) -> None:
    assert thrifty("fit", "trust.csv", "-o", "model", *QUICK)[0] == 0
    (place / "model").write_bytes((place / "model").read_bytes()[:-100])
    assert "cannot be read as a model" in refused("audit", "model")
