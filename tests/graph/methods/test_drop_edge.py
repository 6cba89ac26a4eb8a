"""DropEdge: as many edges go as were asked for, and none comes."""

import pytest

from thrifty.errors import SettingError
from thrifty.graph.apply import apply
from thrifty.graph.job import GraphJob
from thrifty.graph.methods.drop_edge import DropEdge
from thrifty.graph.signed import SignedGraph


def test_a_share_of_the_edges_goes(graph: SignedGraph) -> None:
    new = apply(DropEdge(share=0.25).plan(GraphJob.of(graph)), graph)
    assert new.graph.num_edges == round(0.75 * graph.num_edges)
    assert new.counts()["added +"] == new.counts()["added -"] == 0


def test_all_edges_cannot_go() -> None:
    with pytest.raises(SettingError, match="less than 1"):
        DropEdge(share=1.0)
