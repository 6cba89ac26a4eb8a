"""SGA with chosen thresholds: the choice is made on held-out edges, and the change may be none."""

import pytest

from thrifty.errors import SettingError
from thrifty.graph.apply import apply
from thrifty.graph.job import GraphJob
from thrifty.graph.methods.sga_tuned import SgaTuned
from thrifty.graph.model import held_out_edges
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph


def test_the_choice_is_made_without_the_held_out_edges(planted: SignedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, fit = [], Triads.fit

    def spy(self: Triads, graph: SignedGraph, *more: object) -> object:
        learnt.append(set(graph.key.tolist()) & set(planted.key.tolist()))
        return fit(self, graph, *more)

    monkeypatch.setattr(Triads, "fit", spy)
    plan = SgaTuned(scorer="triads", deletes=(0.1,), adds=(0.9,)).plan(GraphJob.of(planted))
    judged = set(planted.key[held_out_edges(planted, 0)].tolist())
    *choosing, final = learnt
    assert len(choosing) == 5
    assert not any(keys & judged for keys in choosing[:1])
    assert judged <= final
    assert "held-out AUC" in plan.method


def test_nothing_changes_where_plain_training_is_best(planted: SignedGraph) -> None:
    plan = SgaTuned(scorer="triads", deletes=(0.99,), adds=(1.1,)).plan(GraphJob.of(planted))
    assert apply(plan, planted).graph.num_edges == planted.num_edges


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(SettingError, match="one threshold or more"):
        SgaTuned(deletes=())
