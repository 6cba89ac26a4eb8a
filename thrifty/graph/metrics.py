"""How good predicted signs are: ranking, hard labels, and whether a probability means what it says."""

import numpy as np
from jaxtyping import Bool, Float64, Int8
from sklearn import metrics

from thrifty.errors import SettingError

Probability = Float64[np.ndarray, " edges"]
Signs = Int8[np.ndarray, " edges"]

NAMES = ("auc", "ap_negative", "f1_binary", "f1_micro", "f1_macro", "auc_hard", "brier", "ece")
"""What `measure` returns, in this order."""


def measure(probability: Probability, sign: Signs, threshold: float = 0.5) -> dict[str, float]:
    """Compare P(positive) of edges with their signs; labels are positive where it reaches `threshold`.

    `auc` ranks by probability; `ap_negative` is the average precision of finding the negative edges; `f1_binary` is of
    the positive class, `f1_micro` equals accuracy. `auc_hard` is the AUC of the hard labels, the mean of the two
    classes' recalls: some papers print it as AUC, and it must never stand beside a ranking AUC. `brier` and `ece` (15
    bins) judge the probabilities themselves. What needs both signs is NaN where one is missing.
    """
    if len(sign) == 0:
        return dict.fromkeys(NAMES, float("nan"))
    is_positive, label = sign > 0, probability >= threshold
    both = is_positive.any() and not is_positive.all()
    return {
        "auc": float(metrics.roc_auc_score(is_positive, probability)) if both else float("nan"),
        "ap_negative": float(metrics.average_precision_score(~is_positive, 1 - probability)) if both else float("nan"),
        "f1_binary": _f1(is_positive, label),
        "f1_micro": float((is_positive == label).mean()),
        "f1_macro": (_f1(is_positive, label) + _f1(~is_positive, ~label)) / 2,
        "auc_hard": float(metrics.balanced_accuracy_score(is_positive, label)) if both else float("nan"),
        "brier": float(np.mean((probability - is_positive) ** 2)),
        "ece": calibration_error(probability, is_positive),
    }


def _f1(truth: Bool[np.ndarray, " edges"], found: Bool[np.ndarray, " edges"]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where there is nothing to find and nothing found."""
    hits, wrong = int((truth & found).sum()), int((truth != found).sum())
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 0.0


def reliability(
    probability: Probability, is_positive: Bool[np.ndarray, " edges"], num_bins: int = 15
) -> list[tuple[float, float, int]]:
    """For each of `num_bins` equal steps of probability that holds edges: the mean probability in it, the share of
    positive edges, and how many edges there are."""
    place = np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(place, minlength=num_bins)
    expected = np.bincount(place, weights=probability, minlength=num_bins)
    found = np.bincount(place, weights=is_positive, minlength=num_bins)
    used = np.flatnonzero(count)
    return [(float(expected[i] / count[i]), float(found[i] / count[i]), int(count[i])) for i in used]


def calibration_error(probability: Probability, is_positive: Bool[np.ndarray, " edges"], num_bins: int = 15) -> float:
    """The expected calibration error: the mean distance of probability and share in `reliability`, by edges."""
    bins = reliability(probability, is_positive, num_bins)
    return sum(abs(expected - found) * count for expected, found, count in bins) / len(probability)


def best_threshold(probability: Probability, sign: Signs) -> float:
    """The threshold with the highest macro F1 on these edges, half-way between two probabilities.

    Use it on edges that are neither in training nor in test. Raises `SettingError` where there are no edges.
    """
    if len(sign) == 0:
        raise SettingError("a threshold needs edges to be chosen on; found none")
    order = np.argsort(probability, kind="stable")
    values, is_positive = probability[order], sign[order] > 0
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    below_positive = np.r_[0, np.cumsum(is_positive)]  # labelled negative when the threshold lies before position i
    below_negative = np.r_[0, np.cumsum(~is_positive)]
    right_positive = positives - below_positive
    f1_positive = 2 * right_positive / np.maximum(positives + (len(sign) - below_positive - below_negative), 1)
    f1_negative = 2 * below_negative / np.maximum(negatives + below_positive + below_negative, 1)
    is_step = np.r_[True, values[1:] > values[:-1], True]
    place = int(np.argmax(np.where(is_step, f1_positive + f1_negative, -1)))
    if place == 0:
        return float(values[0])
    return float((values[place - 1] + values[place]) / 2) if place < len(values) else float(np.nextafter(values[-1], 2))
