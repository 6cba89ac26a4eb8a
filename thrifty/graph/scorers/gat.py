"""GAT, blind to signs in its messages, as SGA uses it (Veličković et al., 2018, arXiv:1710.10903)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.graph.scorer import Curriculum, Fitted, Tensors
from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import SignHead
from thrifty.graph.spectral import Features, node_features
from thrifty.graph.terms import Terms
from thrifty.graph.train import (
    Device,
    Prior,
    Schedule,
    check_learnable,
    device_of,
    generator_of,
    seeded,
    train_terms,
)
from thrifty.progress import Track


@dataclass(frozen=True)
class Gat:
    """PyG's `GATConv` on all edges alike, then the head and the loss of SGCN, which know the signs.

    SGA trains it with `lamb` 5, the triplet losses of SGCN. Those pull the ends of positive edges together along the
    very messages, and all vectors shrink to one; our default leaves them out. `prior` as in `Sgcn`: `corrected` adds
    the log-odds of the training edges, which the loss leaves out.
    """

    features: Features = "spectral"
    dim: int = 64
    num_layers: int = 2
    epochs: int = 500
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    lamb: float = 0.0
    prior: Prior = "corrected"
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if self.dim < 1 or self.num_layers < 1:
            raise SettingError(f"Gat: dim={self.dim}, num_layers={self.num_layers}; use 1 or more of each")

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> Fitted:
        """Train on all edges; messages go from source to target."""
        check_learnable(graph)
        device = device_of(self.device)
        x = torch.from_numpy(node_features(graph, self.features, self.dim, seed)).to(device)
        with seeded(seed):
            network = _Network(x, _with_loops(graph, device), self.num_layers).to(device)
        schedule = Schedule(self.epochs, self.learning_rate, self.weight_decay)
        generator = generator_of(seed, device)
        return train_terms(network, network.head, graph, generator, schedule, self.lamb, self.prior, curriculum, track)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> Fitted:
        """The terms of the nodes are all that is needed."""
        return Terms.restored(tensors)


def _with_loops(graph: SignedGraph, device: torch.device) -> Int[Tensor, "2 messages"]:
    nodes = np.arange(graph.num_nodes)
    index = np.stack([np.append(graph.source, nodes), np.append(graph.target, nodes)])
    return torch.from_numpy(index.astype(np.int64)).to(device)


class _Network(nn.Module):
    """Layers of `GATConv` and a head. Every node also hears itself, as in PyG; adding these loops in each step, PyG's
    way, would make a GPU wait for their count."""

    def __init__(self, x: Float[Tensor, "nodes dim"], index: Int[Tensor, "2 messages"], num_layers: int) -> None:
        super().__init__()
        dim = x.shape[1]
        self.x, self.index = x, index
        self.layers = nn.ModuleList(GATConv(dim, dim, add_self_loops=False) for _ in range(num_layers))
        self.head = SignHead(dim)

    def forward(self) -> Float[Tensor, "nodes dim"]:
        z = self.x
        for layer in self.layers:
            z = layer(z, self.index).relu()
        return z
