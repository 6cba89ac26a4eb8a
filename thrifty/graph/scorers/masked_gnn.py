"""A signed, directed graph network that never hears of the edge it judges, in training as in use (our own design)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.errors import SettingError
from thrifty.graph.messages import Messages
from thrifty.graph.scorer import Curriculum, Tensors
from thrifty.graph.signed import Nodes, SignedGraph, need_both_signs, pair_key
from thrifty.graph.signed_loss import LossEdges
from thrifty.graph.train import Device, Schedule, device_of, generator_of, seeded, train
from thrifty.progress import Track

_CPU = torch.device("cpu")
_FACTS = 6
_DEGREE_SCALE = 3.0  # log-degrees then are about as large as the shares
_SHARE_PRIOR = 2.0


@dataclass(frozen=True)
class MaskedGnn:
    """Edges are dealt into `folds`; each is judged by what the messages over the edges of all other folds say.

    A node starts from its signed in- and out-degrees only and learns nothing of its own, so that weights cannot learn
    edges by heart. Each of `num_layers` layers adds what it makes of the node and of four means over neighbours: those
    it trusts, distrusts, is trusted by, is distrusted by (the relations of SDGNN, Huang et al., AAAI 2021,
    arXiv:2101.02390, section 4.1). The log-odds of i -> j are b_i + c_j + p_i · q_j with `rank` products, trained by
    log-likelihood, so that the share of positive edges is in them.

    Without the folds a network such as SGCN reads the sign of a training edge from the messages along it, and its
    log-odds of training edges are then too sure to be combined with other evidence.
    """

    dim: int = 32
    num_layers: int = 3
    rank: int = 8
    folds: int = 10
    epochs: int = 40
    dropout: float = 0.2
    learning_rate: float = 0.005
    weight_decay: float = 1e-4
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse sizes that do not exist."""
        if min(self.dim, self.num_layers, self.rank, self.epochs) < 1 or not 2 <= self.folds <= 255:
            raise SettingError(
                f"MaskedGnn: dim={self.dim}, num_layers={self.num_layers}, rank={self.rank}, epochs={self.epochs}, "
                f"folds={self.folds}; use 1 or more of each, and 2 to 255 folds"
            )

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> "FittedMaskedGnn":
        """One step a fold in each epoch. Raises `DataError` where all signs are equal."""
        need_both_signs(graph)
        device = device_of(self.device)
        generator = generator_of(seed, device)
        fold = np.random.default_rng(seed).integers(self.folds, size=graph.num_edges).astype(np.uint8)
        edges = LossEdges(graph, device)
        with seeded(seed):
            network = _Network(self).to(device)
        losses = [
            _Loss(network, _View.of(graph, fold != one, device), edges, fold == one, self.dropout, generator)
            for one in range(self.folds)
            if (fold == one).any()
        ]
        schedule = Schedule(self.epochs, self.learning_rate, self.weight_decay, decay="cosine")
        train(network, losses, edges, generator, schedule, curriculum, track)
        return FittedMaskedGnn(self, graph, network.to(_CPU), fold)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> "FittedMaskedGnn":
        """The weights that were saved; messages are sent anew over the edges of `graph`."""
        network = _Network(self)
        weights = {name: torch.from_numpy(value) for name, value in tensors.items() if name != "fold"}
        network.load_state_dict(weights)
        return FittedMaskedGnn(self, graph, network, tensors["fold"])


@dataclass(frozen=True)
class FittedMaskedGnn:
    """The network, the edges that carry messages, and the fold of each."""

    settings: MaskedGnn
    graph: SignedGraph
    network: "_Network"
    fold: np.ndarray

    def log_odds(self, source: Nodes, target: Nodes) -> np.ndarray:
        """An edge of the graph is judged without the messages of its fold; another pair with all of them."""
        order, keys = self._sorted_keys
        key = pair_key(source, target, self.graph.num_nodes)
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        fold = np.where(keys[place] == key, self.fold[order[place]], self.settings.folds)
        result = np.empty(len(source), np.float64)
        for one in np.unique(fold):
            chosen = fold == one
            terms = self._whole if one == self.settings.folds else self._terms(self.fold != one)
            i, j = (torch.from_numpy(nodes[chosen]) for nodes in (source, target))
            result[chosen] = _pair_logits(terms, i, j).double().numpy()
        return result

    def left_out(self, graph: SignedGraph) -> np.ndarray:
        """Every edge is judged without what its fold says, by weights that know no node."""
        return self.log_odds(graph.source, graph.target)

    def tensors(self) -> Tensors:
        """The weights and the fold of each edge."""
        return {name: value.numpy() for name, value in self.network.state_dict().items()} | {"fold": self.fold}

    @cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.graph.key)
        return order, self.graph.key[order]

    @cached_property
    def _whole(self) -> tuple[Tensor, ...]:
        return self._terms(np.ones(self.graph.num_edges, bool))

    def _terms(self, is_heard: np.ndarray) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.network(_View.of(self.graph, is_heard, _CPU), 0.0, None)


@dataclass(frozen=True)
class _View:
    """What the nodes know when only some of the edges carry messages: facts, and the four means over neighbours."""

    facts: Float[Tensor, "nodes facts"]
    relations: tuple[tuple[Messages, Float[Tensor, "nodes 1"]], ...]

    @staticmethod
    def of(graph: SignedGraph, is_heard: np.ndarray, device: torch.device) -> "_View":
        nodes, relations, degrees = graph.num_nodes, [], []
        for sign in (1, -1):
            chosen = is_heard & (graph.sign == sign)
            source, target = graph.source[chosen], graph.target[chosen]
            counts = (np.bincount(target, minlength=nodes), np.bincount(source, minlength=nodes))
            ones = np.ones(len(source), np.float32)
            incoming = Messages.of(scipy.sparse.csr_array((ones, (target, source)), shape=(nodes, nodes)), device)
            for messages, count in zip((incoming, incoming.flipped()), counts, strict=True):
                share = torch.from_numpy(1 / np.maximum(count, 1).astype(np.float32))[:, None]
                relations.append((messages, share.to(device)))
            degrees += counts
        positive, negative = degrees[0].sum(), degrees[2].sum()
        prior = (positive + 1) / (positive + negative + 2)
        shares = [
            (degrees[way] + _SHARE_PRIOR * prior) / (degrees[way] + degrees[way + 2] + _SHARE_PRIOR) - prior
            for way in (0, 1)
        ]
        facts = np.stack([*(np.log1p(degree) / _DEGREE_SCALE for degree in degrees), *shares], axis=1)
        return _View(torch.from_numpy(facts.astype(np.float32)).to(device), tuple(relations))


class _Network(nn.Module):
    """Residual layers over the four means, and a head of two biases and a product."""

    def __init__(self, settings: MaskedGnn) -> None:
        super().__init__()
        dim, layers = settings.dim, range(settings.num_layers)
        self.first = nn.Linear(_FACTS, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in layers)
        self.of_node = nn.ModuleList(nn.Linear(dim, dim) for _ in layers)
        self.of_neighbours = nn.ModuleList(nn.Linear(4 * dim, dim, bias=False) for _ in layers)
        self.as_source, self.as_target = nn.Linear(dim, 1 + settings.rank), nn.Linear(dim, 1 + settings.rank)

    def forward(self, view: _View, dropout: float, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """For each node its bias and factors as a source, and as a target."""
        h = self.first(view.facts)
        for norm, of_node, of_neighbours in zip(self.norms, self.of_node, self.of_neighbours, strict=True):
            z = norm(h).relu()
            if dropout:
                kept = torch.empty_like(z).bernoulli_(1 - dropout, generator=generator)
                z = z * kept / (1 - dropout)
            means = torch.cat([messages(z) * share for messages, share in view.relations], dim=1)
            h = h + of_node(z) + of_neighbours(means)
        h = h.relu()
        return self.as_source(h), self.as_target(h)


@dataclass(frozen=True)
class _Loss:
    """The mean log-likelihood of the counted edges of one fold, from the messages of all others."""

    network: _Network
    view: _View
    edges: LossEdges
    is_judged: np.ndarray
    dropout: float
    generator: torch.Generator

    @cached_property
    def judged(self) -> Int[Tensor, " judged"]:
        return torch.from_numpy(np.flatnonzero(self.is_judged)).to(self.generator.device)

    def __call__(self) -> Tensor:
        terms = self.network(self.view, self.dropout, self.generator)
        i, j, sign, counted = (
            x.index_select(0, self.judged)
            for x in (self.edges.source, self.edges.target, self.edges.sign, self.edges.is_counted)
        )
        lost = F.softplus(-sign * _pair_logits(terms, i, j))
        return (lost * counted).sum() / counted.sum().clamp(min=1)


def _pair_logits(terms: tuple[Tensor, ...], i: Tensor, j: Tensor) -> Tensor:
    source, target = terms[0].index_select(0, i), terms[1].index_select(0, j)
    products = (source[:, 1:] * target[:, 1:]).sum(1)
    return source[:, 0] + target[:, 0] + products / (source.shape[1] - 1) ** 0.5
