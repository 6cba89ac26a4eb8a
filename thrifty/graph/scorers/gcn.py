"""GCN, blind to signs in its messages: SGA's plainest backbone (Kipf and Welling, 2017, arXiv:1609.02907)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.graph.messages import Messages, weighted
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
class Gcn:
    """PyG's `GCNConv` on all edges alike, then the head and the loss of SGCN, which know the signs.

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
            raise SettingError(f"Gcn: dim={self.dim}, num_layers={self.num_layers}; use 1 or more of each")

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> Fitted:
        """Train on all edges; messages go from source to target."""
        check_learnable(graph)
        device = device_of(self.device)
        x = torch.from_numpy(node_features(graph, self.features, self.dim, seed)).to(device)
        with seeded(seed):
            network = _Network(x, _normalised(graph, device), self.num_layers).to(device)
        schedule = Schedule(self.epochs, self.learning_rate, self.weight_decay)
        generator = generator_of(seed, device)
        return train_terms(network, network.head, graph, generator, schedule, self.lamb, self.prior, curriculum, track)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> Fitted:
        """The terms of the nodes are all that is needed."""
        return Terms.restored(tensors)


def _normalised(graph: SignedGraph, device: torch.device) -> Messages:
    index = torch.from_numpy(np.stack([graph.source, graph.target]).astype(np.int64))
    loops, weight = gcn_norm(index, num_nodes=graph.num_nodes)
    assert isinstance(loops, Tensor)
    source, target = loops.numpy().astype(np.int32)
    return weighted(weight.numpy(), source, target, graph.num_nodes, device)  # pyright: ignore[reportOptionalMemberAccess]


class _Network(nn.Module):
    """Layers of `GCNConv` and a head; the messages of the first, which never change, are made once."""

    def __init__(self, x: Float[Tensor, "nodes dim"], messages: Messages, num_layers: int) -> None:
        super().__init__()
        dim = x.shape[1]
        self.messages, self.gathered = messages, messages(x)
        self.layers = nn.ModuleList(GCNConv(dim, dim) for _ in range(num_layers))
        self.head = SignHead(dim)

    def forward(self) -> Float[Tensor, "nodes dim"]:
        z = self.gathered
        for number, layer in enumerate(self.layers):
            gathered = self.messages(z) if number else z  # the weights may come after the sum
            z = F.linear(gathered, layer.lin.weight, layer.bias).relu()  # pyright: ignore
        return z
