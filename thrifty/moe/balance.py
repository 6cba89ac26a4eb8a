"""What keeps a mixture of experts within its budget, its experts apart, and all of them in use.

The regularisers of ToMoE (arXiv:2501.15316): budget and union are log ratios, two-sided; the balance is the loss of the
Switch transformer (Fedus et al., 2022) over the soft probabilities of all tokens, 1 where every expert is used alike.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 0.001
Function = Callable[[Tensor], Tensor]


def together(function: Function, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`function` of each tensor, computed for all that have one shape at once, along a new first axis: a GPU takes as
    long for the small tensors of one layer as for those of all."""
    shapes = dict.fromkeys(tensor.shape for tensor in tensors.values())
    found: dict[str, Tensor] = {}
    for shape in shapes:
        names = [name for name, tensor in tensors.items() if tensor.shape == shape]
        found |= dict(zip(names, function(torch.stack([tensors[name] for name in names])).unbind(), strict=True))
    return {name: found[name] for name in tensors}


def log_ratio(value: Tensor, wanted: Tensor | float) -> Tensor:
    """|log((value + c) / (wanted + c))| with c = 0.001: 0 where they agree, as steep on either side."""
    return torch.log((value + SMALL) / (wanted + SMALL)).abs()


def expected_width(chance: Float[Tensor, "*sites experts channels"]) -> Float[Tensor, "*sites"]:
    """Channels that an expert is expected to have, the mean over the experts of a layer: all will have that width.

    The paper charges the widest. Then only one expert of a layer feels the budget at a time, and what the others do not
    use of the width is paid for all the same.
    """
    return chance.sum(-1).mean(-1)


def union(masks: Float[Tensor, "*sites experts channels"]) -> Float[Tensor, "*sites"]:
    """The share of channels that at least one expert has, differentiable: the mean of 1 - prod(1 - s).

    Multiplied pair by pair: the gradient of torch's `prod` looks for zeros on the host.
    """
    absent = 1 - masks
    while (count := absent.shape[-2]) > 1:
        first, second, rest = absent.split((count // 2, count // 2, count % 2), dim=-2)
        absent = torch.cat((first * second, rest), dim=-2)
    return (1 - absent.squeeze(-2)).mean(-1)


def union_loss(unions: Float[Tensor, " layers"]) -> Float[Tensor, ""]:
    """How far the experts of each layer are from covering all channels; without it they collapse into one static mask.

    The mean over MLP layers; the released code divides by MLP and attention layers, half of which are zero.
    """
    return log_ratio(unions, 1.0).mean()


def balance_loss(router_logits: Sequence[Float[Tensor, "*tokens experts"]]) -> Float[Tensor, ""]:
    """N sum_n f_n P_n, the mean over layers: f_n is the share of tokens whose largest logit is n, P_n the mean of their
    softmax probability over all tokens. 1 at perfect balance, N where one expert takes all."""
    rows = torch.stack([logits.float().flatten(0, -2) for logits in router_logits])
    first = torch.zeros_like(rows).scatter_(-1, rows.argmax(-1, keepdim=True), 1.0)
    return rows.shape[-1] * (first.mean(1) * rows.softmax(-1).mean(1)).sum(-1).mean()
