"""SDGNN: attention over who trusts and distrusts whom, both ways (Huang et al., AAAI 2021, arXiv:2101.02390)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from thrifty.errors import SettingError
from thrifty.graph.balance import balance
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorer import Curriculum, Fitted, Tensors
from thrifty.graph.signed import Nodes, SignedGraph, need_both_signs
from thrifty.graph.signed_loss import LossEdges
from thrifty.graph.train import Device, Schedule, device_of, generator_of, seeded, train
from thrifty.progress import Track

_CHUNK = 500_000


@dataclass(frozen=True)
class Sdgnn:
    """Node vectors are learnt, passed on over four relations, and trained on three losses of the counted edges.

    Sign: the NLL of sigmoid(z_i · z_j). `direction` (status theory): s(z_j) - s(z_i) should be at least `margin` for a
    positive edge i -> j, and at most -`margin` for a negative one, squared, with s a learnt status in [0, 1].
    `triangle` (balance theory): the NLL of the three signs of every balanced triangle, which is the sign loss with each
    edge weighted by its balanced triangles. All are means, where the paper adds up over batches of 500 edges; its other
    departure is that all edges are in every step. A logistic regression on z_i, z_j and (not in the paper) their
    products then gives the log-odds.
    """

    dim: int = 32
    num_layers: int = 2
    epochs: int = 100
    learning_rate: float = 0.01
    weight_decay: float = 1e-3
    direction: float = 1.0
    triangle: float = 1.0
    margin: float = 0.5
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse sizes that do not exist."""
        if self.dim < 1 or self.num_layers < 1:
            raise SettingError(f"Sdgnn: dim={self.dim}, num_layers={self.num_layers}; use 1 or more of each")

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> Fitted:
        """Train on all edges. Raises `DataError` where all signs are equal."""
        need_both_signs(graph)
        device = device_of(self.device)
        with seeded(seed):
            network = _Network(self, graph).to(device)
        edges = LossEdges(graph, device)
        balanced, _ = balance(Neighbours.of(graph), graph.source, graph.target, graph.sign)
        in_triangles = torch.from_numpy(balanced).to(device, torch.float32)

        def loss() -> Tensor:
            return _loss(self, network, edges, in_triangles)

        schedule = Schedule(self.epochs, self.learning_rate, self.weight_decay)
        train(network, [loss], edges, generator_of(seed, device), schedule, curriculum, track)
        with torch.no_grad():
            z = network().cpu().numpy()
        return _read_out(z, graph)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> Fitted:
        """Biases and factors of the nodes are all that is needed."""
        return FittedSdgnn(*(tensors[name] for name in ("a", "b", "left", "right")))


@dataclass(frozen=True)
class FittedSdgnn:
    """log-odds a[i] + b[j] + left[i] · right[j]."""

    a: Float32[np.ndarray, " nodes"]
    b: Float32[np.ndarray, " nodes"]
    left: Float32[np.ndarray, "nodes dim"]
    right: Float32[np.ndarray, "nodes dim"]

    def log_odds(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """log P(positive) / P(negative)."""
        result = self.a[source].astype(np.float64) + self.b[target]
        for start in range(0, len(source), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[part] += (self.left[source[part]] * self.right[target[part]]).sum(axis=1)
        return result

    def left_out(self, graph: SignedGraph) -> None:
        """Unknown: every edge was learnt from."""

    def tensors(self) -> Tensors:
        """Biases and factors."""
        return {"a": self.a, "b": self.b, "left": self.left, "right": self.right}


def _read_out(z: np.ndarray, graph: SignedGraph) -> FittedSdgnn:
    scale = z.std(axis=0) + 1e-6
    z = (z - z.mean(axis=0)) / scale
    i, j = z[graph.source], z[graph.target]
    regression = LogisticRegression(solver="newton-cholesky", max_iter=100)
    regression.fit(np.concatenate([i, j, i * j], axis=1), graph.sign > 0)
    of_source, of_target, of_product = regression.coef_[0].astype(np.float32).reshape(3, -1)
    offset = np.float32(np.ravel(regression.intercept_)[0])
    return FittedSdgnn(z @ of_source + offset, z @ of_target, z * of_product, z)


class _Network(nn.Module):
    """Learnt vectors, then layers of four attentions (equations 5 to 7) and a perceptron on what they bring."""

    def __init__(self, settings: Sdgnn, graph: SignedGraph) -> None:
        super().__init__()
        dim = settings.dim
        self.x = nn.Parameter(torch.randn(graph.num_nodes, dim) * dim**-0.5)
        self.layers = nn.ModuleList(_Layer(dim) for _ in range(settings.num_layers))
        self.status = nn.Linear(dim, 1)
        ways = np.stack([graph.source, graph.target]).astype(np.int64)
        for number, sign in enumerate((1, -1)):
            chosen = np.ascontiguousarray(ways[:, graph.sign == sign])
            self.register_buffer(f"relation_{2 * number}", torch.from_numpy(chosen))
            self.register_buffer(f"relation_{2 * number + 1}", torch.from_numpy(chosen[::-1].copy()))

    def forward(self) -> Float[Tensor, "nodes dim"]:
        z, relations = self.x, [self.get_buffer(f"relation_{number}") for number in range(4)]
        for layer in self.layers:
            z = layer(z, relations)
        return z


class _Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(GATConv(dim, dim, add_self_loops=False) for _ in range(4))
        self.mix = nn.Sequential(nn.Linear(5 * dim, dim), nn.Tanh(), nn.Linear(dim, dim))

    def forward(self, z: Float[Tensor, "nodes dim"], relations: list[Int[Tensor, "2 _"]]) -> Float[Tensor, "nodes dim"]:
        heard = [attend(z, index) for attend, index in zip(self.attentions, relations, strict=True)]
        return self.mix(torch.cat([z, *heard], dim=1))


def _loss(settings: Sdgnn, network: _Network, edges: LossEdges, in_triangles: Tensor) -> Float[Tensor, ""]:
    z = network()
    i, j = edges.source, edges.target
    agreement = (z.index_select(0, i) * z.index_select(0, j)).sum(1)
    lost = F.softplus(-edges.sign * agreement)
    counted, balanced = edges.is_counted, edges.is_counted * in_triangles
    total = (lost * counted).sum() / counted.sum().clamp(min=1)
    total = total + settings.triangle * (lost * balanced).sum() / balanced.sum().clamp(min=1)
    status = network.status(z)[:, 0].sigmoid()
    rise = edges.sign * (status.index_select(0, j) - status.index_select(0, i))
    missing = (settings.margin - rise).clamp(min=0).square()
    return total + settings.direction * (missing * counted).sum() / counted.sum().clamp(min=1)
