"""Fit a linear router to labels: the closed form that training-free experts are routed by."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot


def linear_router(
    x: Float[Tensor, "tokens d"], labels: Int[Tensor, " tokens"], num_experts: int, ridge: float = 0.01
) -> Float[Tensor, "experts d"]:
    """Ridge regression of the one-hot labels on x, without intercept: token x goes to the largest of `router x`.

    `ridge` is a share of the mean square of x's channels. Labels are weighted so that each expert counts alike: a rare
    one would never have the largest output.
    """
    members = one_hot(labels, num_experts).double()
    weight = (members / members.sum(0).clamp_min(1)).sum(-1)
    rows = x.double()
    gram = (rows * weight[:, None]).T @ rows
    gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=x.device)
    return torch.linalg.solve(gram, rows.T @ (members * weight[:, None])).T.float()
