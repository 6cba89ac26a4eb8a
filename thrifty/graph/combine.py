"""A small network and a logistic regression over the same features; their log-odds are averaged."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.graph.scorer import Tensors
from thrifty.graph.train import Device, device_of, seeded
from thrifty.progress import Track

_ROWS = 500_000  # scored at once
_LEAST_BATCH = 512


@dataclass(frozen=True)
class Learning:
    """How the network learns: `networks` of them from different seeds, two hidden layers, AdamW with one cycle."""

    hidden: int = 64
    networks: int = 2
    epochs: int = 30
    learning_rate: float = 0.002
    dropout: float = 0.1
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Combined:
    """What was learnt: `mean` and `scale` of the features, weights of the regression, and the networks."""

    mean: Float32[np.ndarray, " columns"]
    scale: Float32[np.ndarray, " columns"]
    weight: Float64[np.ndarray, " columns"]
    offset: float
    networks: list[nn.Sequential]

    def log_odds(self, features: Float32[np.ndarray, "rows columns"]) -> Float64[np.ndarray, " rows"]:
        """The mean of the regression's log-odds and the networks' own mean."""
        result = np.empty(len(features), dtype=np.float64)
        for start in range(0, len(features), _ROWS):
            part = (features[start : start + _ROWS] - self.mean) / self.scale
            with torch.no_grad():
                rows = torch.from_numpy(part)
                networks = torch.stack([network(rows)[:, 0] for network in self.networks]).mean(0).double().numpy()
            result[start : start + _ROWS] = (part @ self.weight + self.offset + networks) / 2
        return result

    def tensors(self) -> Tensors:
        """Everything as arrays."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "offset": np.array([self.offset])}
        for place, network in enumerate(self.networks):
            arrays |= {f"network.{place}.{name}": value.numpy() for name, value in network.state_dict().items()}
        return arrays

    @staticmethod
    def restored(tensors: Tensors, one: Learning) -> "Combined":
        """What `tensors()` was taken from."""
        networks = []
        for place in range(one.networks):
            prefix = f"network.{place}."
            network = _network(len(tensors["mean"]), one)
            weights = {n.removeprefix(prefix): torch.from_numpy(v) for n, v in tensors.items() if n.startswith(prefix)}
            network.load_state_dict(weights)
            networks.append(network.eval())
        return Combined(tensors["mean"], tensors["scale"], tensors["weight"], float(tensors["offset"][0]), networks)


def combine(
    features: Float32[np.ndarray, "rows columns"],
    is_positive: Bool[np.ndarray, " rows"],
    one: Learning,
    seed: int,
    device: Device,
    track: Track,
) -> Combined:
    """Learn log P(positive) / P(negative) of rows of features."""
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.maximum(features.std(axis=0, dtype=np.float64), 1e-6).astype(np.float32)
    rows = (features - mean) / scale
    regression = LogisticRegression(C=1.0, solver="newton-cholesky", max_iter=100).fit(rows, is_positive)
    place = device_of(device)
    x, y = torch.from_numpy(rows).to(place), torch.from_numpy(is_positive.astype(np.float32)).to(place)
    turns = track(range(one.networks), "combining", one.networks)
    networks = [_trained(x, y, one, seed + turn) for turn in turns]
    weight, offset = regression.coef_[0].astype(np.float64), float(np.ravel(regression.intercept_)[0])
    return Combined(mean, scale, weight, offset, networks)


def _network(columns: int, one: Learning) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (columns, one.hidden):
        layers += [nn.Linear(width, one.hidden), nn.SiLU(), nn.Dropout(one.dropout)]
    return nn.Sequential(*layers, nn.Linear(one.hidden, 1))


def _trained(x: Tensor, y: Tensor, one: Learning, seed: int) -> nn.Sequential:
    """Cross-entropy over mini-batches in random order."""
    batch = min(len(x), max(_LEAST_BATCH, len(x) // 200))
    steps = len(x) // batch
    with seeded(seed):
        network = _network(x.shape[1], one).to(x.device)
        optimiser = torch.optim.AdamW(network.parameters(), one.learning_rate, weight_decay=one.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, one.learning_rate, total_steps=one.epochs * steps + 1)
        for _ in range(one.epochs):
            order = torch.randperm(len(x)).to(x.device)
            for chosen in order[: steps * batch].split(batch):
                loss = F.binary_cross_entropy_with_logits(network(x[chosen])[:, 0], y[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return network.cpu().eval()
