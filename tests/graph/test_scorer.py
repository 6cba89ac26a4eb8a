"""The laws of every scorer in the folder."""

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from thrifty import catalogue
from thrifty.errors import SettingError
from thrifty.graph.scorer import Curriculum, Fitted, Scorer
from thrifty.graph.signed import SignedGraph
from thrifty.progress import silent

NODES, ALONE = 60, 5
BRIEF = {"dim": 16, "epochs": 60, "device": "cpu", "folds": 4}

every_scorer = pytest.mark.parametrize("name", catalogue.names("graph", "scorers"))


def scorer_of(name: str, **changes: int) -> Scorer:
    """The scorer, with a short training."""
    scorer = catalogue.find("graph", name, "scorers")()
    known = {field.name for field in fields(scorer)}
    return replace(scorer, **{key: value for key, value in (BRIEF | changes).items() if key in known})


def has_epochs(name: str) -> bool:
    return any(field.name == "epochs" for field in fields(catalogue.find("graph", name, "scorers")))


@cache
def planted() -> tuple[SignedGraph, SignedGraph]:
    """A third of the nodes earns distrust, a tenth of the signs is wrong: edges to learn from, and to judge."""
    random = np.random.default_rng(3)
    key = random.permutation(NODES * NODES)
    source, target = key // NODES, key % NODES
    source, target = (nodes[source != target][:1400] for nodes in (source, target))
    sign = np.where(target % 3, 1, -1) * np.where(random.random(1400) < 0.1, -1, 1)
    graph = SignedGraph.of(source, target, sign, NODES + ALONE)
    return graph.take(np.arange(1000)), graph.take(np.arange(1000, 1400))


@cache
def fitted(name: str) -> Fitted:
    return scorer_of(name).fit(planted()[0], 0, None, silent)


class Half:
    """Releases half of the edges until the end."""

    def edges_at(self, progress: float) -> np.ndarray:
        return np.arange(500)


@every_scorer
def test_every_scorer_keeps_the_contract(name: str) -> None:
    assert isinstance(catalogue.find("graph", name, "scorers")(), Scorer)
    assert isinstance(fitted(name), Fitted)


@every_scorer
def test_the_same_seed_gives_the_same_result(name: str) -> None:
    graph, other = planted()
    again = scorer_of(name).fit(graph, 0, None, silent)
    wanted = fitted(name).log_odds(other.source, other.target)
    assert (again.log_odds(other.source, other.target) == wanted).all()


@every_scorer
def test_a_restored_scorer_scores_the_same(name: str) -> None:
    graph, other = planted()
    stored = {key: value.copy() for key, value in fitted(name).tensors().items()}
    restored = scorer_of(name).restore(graph, stored)
    for pairs in (graph, other):
        got = restored.log_odds(pairs.source, pairs.target)
        assert (got == fitted(name).log_odds(pairs.source, pairs.target)).all()


@every_scorer
def test_every_pair_has_finite_log_odds(name: str) -> None:
    nodes = np.arange(NODES + ALONE, dtype=np.int32)
    source, target = (each.ravel() for each in np.meshgrid(nodes, nodes))
    assert np.isfinite(fitted(name).log_odds(source, target)).all()
    assert fitted(name).log_odds(source[:0], target[:0]).shape == (0,)


@every_scorer
def test_log_odds_do_not_depend_on_what_else_is_asked(name: str) -> None:
    graph, other = planted()
    all_of_them = fitted(name).log_odds(*(np.append(a, b) for a, b in _ends(graph, other)))
    assert np.allclose(all_of_them[-5:], fitted(name).log_odds(other.source[-5:], other.target[-5:]))


def _ends(*graphs: SignedGraph) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [graph.source for graph in graphs], [graph.target for graph in graphs]


@every_scorer
def test_what_is_learnt_holds_on_other_edges(name: str) -> None:
    _, other = planted()
    assert roc_auc_score(other.sign > 0, fitted(name).log_odds(other.source, other.target)) > 0.6


@every_scorer
def test_a_curriculum_decides_what_the_loss_counts(name: str) -> None:
    graph, other = planted()
    half: Curriculum = Half()
    if not has_epochs(name):
        with pytest.raises(SettingError, match="epochs"):
            scorer_of(name).fit(graph, 0, half, silent)
        return
    first, second = (scorer_of(name, epochs=5).fit(graph, 0, one, silent) for one in (half, None))
    assert (first.log_odds(other.source, other.target) != second.log_odds(other.source, other.target)).any()


@every_scorer
def test_class_terms_are_the_log_odds_but_for_a_constant(name: str) -> None:
    terms = getattr(fitted(name), "class_terms", None)
    if terms is None:
        pytest.skip("the score of a pair is no sum over its nodes")
    _, other = planted()
    a, b = (term[:, 0].astype(float) - term[:, 1] for term in terms())
    gap = fitted(name).log_odds(other.source, other.target) - a[other.source] - b[other.target]
    assert np.allclose(gap, gap[0])
