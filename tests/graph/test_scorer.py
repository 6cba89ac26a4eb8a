"""The laws of every scorer in the folder."""

from thrifty import catalogue
from thrifty.graph.scorer import Scorer


def test_every_scorer_keeps_the_contract() -> None:
    for name in catalogue.names("graph", "scorers"):
        assert isinstance(catalogue.find("graph", name, "scorers")(), Scorer)
