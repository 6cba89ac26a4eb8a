"""What keeps a mixture of experts within its budget, its experts apart, and all of them in use.

The regularisers of ToMoE (arXiv:2501.15316): budget and union are log ratios, two-sided; the balance is the loss of the
Switch transformer (Fedus et al., 2022) over the soft probabilities of all tokens, 1 where every expert is used alike.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 0.001


def log_ratio(value: Tensor, wanted: Tensor | float) -> Tensor:
    """|log((value + c) / (wanted + c))| with c = 0.001: 0 where they agree, as steep on either side."""
    return torch.log((value + SMALL) / (wanted + SMALL)).abs()


def expected_width(chance: Float[Tensor, "experts channels"]) -> Float[Tensor, ""]:
    """Channels that an expert is expected to have, the mean over the experts of a layer: all will have that width.

    The paper charges the widest. Then only one expert of a layer feels the budget at a time, and what the others do not
    use of the width is paid for all the same.
    """
    return chance.sum(-1).mean()


def union(masks: Float[Tensor, "experts channels"]) -> Float[Tensor, ""]:
    """The share of channels that at least one expert has, differentiable: the mean of 1 - prod(1 - s).

    Multiplied pair by pair: the gradient of torch's `prod` looks for zeros on the host.
    """
    absent = 1 - masks
    while len(absent) > 1:
        half = len(absent) // 2
        absent = torch.cat((absent[:half] * absent[half : 2 * half], absent[2 * half :]))
    return (1 - absent[0]).mean()


def union_loss(unions: Float[Tensor, " layers"]) -> Float[Tensor, ""]:
    """How far the experts of each layer are from covering all channels; without it they collapse into one static mask.

    The mean over MLP layers; the released code divides by MLP and attention layers, half of which are zero.
    """
    return log_ratio(unions, 1.0).mean()


def balance_loss(router_logits: Sequence[Float[Tensor, "*tokens experts"]]) -> Float[Tensor, ""]:
    """N sum_n f_n P_n, the mean over layers: f_n is the share of tokens whose largest logit is n, P_n the mean of their
    softmax probability over all tokens. 1 at perfect balance, N where one expert takes all."""
    losses = []
    for logits in router_logits:
        num_experts = logits.shape[-1]
        rows = logits.float().flatten(0, -2)
        first = torch.zeros_like(rows).scatter_(-1, rows.argmax(-1, keepdim=True), 1.0)
        losses.append(num_experts * (first.mean(0) * rows.softmax(-1).mean(0)).sum())
    return torch.stack(losses).mean()
