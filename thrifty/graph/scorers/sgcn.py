"""SGCN: a graph network with a friend's and a foe's view of every node (Derr, Ma and Tang, 2018, arXiv:1808.06354)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import SignedConv

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.graph.messages import Messages, mean_of
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
class Sgcn:
    """SGCN with PyG's `SignedConv`, its loss and its defaults.

    The loss counts positive edges, negative edges and non-edges alike. `prior` says what the log-odds are of:
    `corrected` adds the log-odds of the training edges, `uniform` does not; the sign of the uniform log-odds is what
    papers report as the predicted label.
    """

    features: Features = "spectral"
    dim: int = 64
    num_layers: int = 2
    epochs: int = 300
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    lamb: float = 5.0
    prior: Prior = "corrected"
    device: Device = "auto"

    def __post_init__(self) -> None:
        settings.check(self)
        if self.dim < 2 or self.dim % 2 or self.num_layers < 1:
            raise SettingError(f"Sgcn: dim={self.dim}, num_layers={self.num_layers}; use an even dim, 1 layer or more")

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> Fitted:
        """Train on all edges; messages go from source to target, as in PyG."""
        check_learnable(graph)
        device = device_of(self.device)
        generator = generator_of(seed, device)
        x = torch.from_numpy(node_features(graph, self.features, self.dim, seed)).to(device)
        friends, foes = (
            mean_of(graph.source[graph.sign == sign], graph.target[graph.sign == sign], graph.num_nodes, device)
            for sign in (1, -1)
        )
        with seeded(seed):
            network = _Network(x, friends, foes, self.num_layers).to(device)
        schedule = Schedule(self.epochs, self.learning_rate, self.weight_decay)
        return train_terms(network, network.head, graph, generator, schedule, self.lamb, self.prior, curriculum, track)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> Fitted:
        """The terms of the nodes are all that is needed."""
        return Terms.restored(tensors)


class _Network(nn.Module):
    """Layers of `SignedConv` and a head; the messages of the first, which never change, are made once."""

    def __init__(self, x: Float[Tensor, "nodes dim"], friends: Messages, foes: Messages, num_layers: int) -> None:
        super().__init__()
        half = x.shape[1] // 2
        self.x, self.friends, self.foes = x, friends, foes
        self.from_friends, self.from_foes = friends(x), foes(x)
        self.first = SignedConv(x.shape[1], half, first_aggr=True)
        self.others = nn.ModuleList(SignedConv(half, half, first_aggr=False) for _ in range(num_layers - 1))
        self.head = SignHead(x.shape[1])

    def forward(self) -> Float[Tensor, "nodes dim"]:
        first = self.first
        z = torch.cat(
            [
                first.lin_pos_l(self.from_friends) + first.lin_pos_r(self.x),
                first.lin_neg_l(self.from_foes) + first.lin_neg_r(self.x),
            ],
            dim=1,
        ).relu()
        for layer in self.others:
            z = _signed(layer, z, self.friends, self.foes).relu()  # pyright: ignore[reportArgumentType]
        return z


def _signed(layer: SignedConv, z: Tensor, friends: Messages, foes: Messages) -> Tensor:
    """`SignedConv` after the first layer, equations 5 and 6, with two sparse products in place of four scatters."""
    balanced, unbalanced = z.chunk(2, dim=1)
    friends_balanced, friends_unbalanced = friends(z).chunk(2, dim=1)
    foes_balanced, foes_unbalanced = foes(z).chunk(2, dim=1)
    from_balanced = torch.cat([friends_balanced, foes_unbalanced], dim=1)
    from_unbalanced = torch.cat([friends_unbalanced, foes_balanced], dim=1)
    return torch.cat(
        [
            layer.lin_pos_l(from_balanced) + layer.lin_pos_r(balanced),
            layer.lin_neg_l(from_unbalanced) + layer.lin_neg_r(unbalanced),
        ],
        dim=1,
    )
