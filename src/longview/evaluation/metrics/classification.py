"""Metrics of predicted probabilities: log loss, normalised entropy, AUC and AUC within users.

Every function takes `labels` (n,) of 0 and 1 and `scores` (n,), one an impression, in float64. `weights` (n,) say how
often each impression counts (a bootstrap draws them), by default once. Where a figure is not defined, as an AUC of one
class is not, it is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

SMALLEST = 1e-15  # probabilities are kept this far from 0 and 1, so that one impression costs at most 35 nats


def log_losses(labels: Values, probabilities: Values) -> Values:
    """Return −log of the probability given to what happened, (n,) nats."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.asarray(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def log_loss(labels: Values, probabilities: Values, weights: Values | None = None) -> float:
    """Return the mean log loss, in nats; lower is better."""
    return float(np.average(log_losses(labels, probabilities), weights=weights)) if len(labels) else float("nan")


def entropy(rate: Values | float) -> Values:
    """Return the entropy in nats of something that happens with probability `rate`; NaN at 0 and 1."""
    p = np.asarray(rate, np.float64)
    p = np.where((p > 0) & (p < 1), p, np.nan)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)))


def normalised_entropy(labels: Values, probabilities: Values, weights: Values | None = None) -> float:
    """Return NE: the log loss over that of predicting the rate of the evaluated impressions for each of them.

    Below 1 is better than the best constant; lower is better. The rate is that of the evaluated impressions, not of
    training, so no constant gets below 1.

    Source: He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD 2014.

    Example:
        >>> labels = np.array([0.0, 1.0, 1.0, 0.0])
        >>> round(normalised_entropy(labels, np.full(4, 0.5)), 6)
        1.0
    """
    if not len(labels):
        return float("nan")
    return log_loss(labels, probabilities, weights) / float(entropy(float(np.average(labels, weights=weights))))


@dataclass(frozen=True)
class Ordering:
    """Scores sorted once for many weightings: `group` (n,) numbers equal scores, worst first."""

    group: Rows
    num_groups: int

    @classmethod
    def of(cls, scores: Values) -> Ordering:
        distinct, group = np.unique(scores, return_inverse=True)
        return cls(group.reshape(-1).astype(np.int64), len(distinct))

    def auc(self, labels: Values, weights: Values | None = None) -> float:
        """Return the AUC with each impression counted `weights` times."""
        weights = np.ones(len(labels)) if weights is None else weights
        positive = np.bincount(self.group, labels * weights, minlength=self.num_groups)
        negative = np.bincount(self.group, (1 - labels) * weights, minlength=self.num_groups)
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs else float("nan")


def auc(labels: Values, scores: Values, weights: Values | None = None) -> float:
    """Return the probability that a positive scores above a negative, ties counted half; NaN with one class.

    Example:
        >>> auc(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.2, 0.7]))
        0.75
    """
    return Ordering.of(scores).auc(labels, weights)


@dataclass(frozen=True)
class UserAUC:
    """AUC within each user who has both classes.

    `users` (m,) the users in order, `auc` (m,), `impressions` (m,) how many each has; `num_excluded` users have one
    class only, so that no order of theirs is right or wrong; their `excluded_impressions` count in no GAUC.
    """

    users: Rows
    auc: Values
    impressions: Rows
    num_excluded: int
    excluded_impressions: int

    @property
    def gauc(self) -> float:
        """The mean AUC of users, weighted by their impressions; NaN where no user has both classes."""
        return float(np.average(self.auc, weights=self.impressions)) if len(self.auc) else float("nan")


def user_auc(labels: Values, scores: Values, users: Rows) -> UserAUC:
    """Return the AUC of every user of `users` (n,); ties count half.

    GAUC as in Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """
    names, user = np.unique(users, return_inverse=True)
    user = user.reshape(-1)
    order = np.lexsort((scores, user))
    user, scores, labels = user[order], scores[order], labels[order]
    begins = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (scores[1:] != scores[:-1])]) if len(user) else user
    tie = np.repeat(np.arange(len(begins)), np.diff(np.r_[begins, len(user)]))
    positive, total = np.bincount(tie, labels), np.bincount(tie).astype(np.float64)
    negative = total - positive
    owner = user[begins]
    negatives = np.bincount(owner, negative, minlength=len(names))
    positives = np.bincount(owner, positive, minlength=len(names))
    # Negatives of the same user below each tie: running sums, less those of the users before.
    below = np.cumsum(negative) - negative - (np.cumsum(negatives) - negatives)[owner]
    wins = np.bincount(owner, positive * (below + 0.5 * negative), minlength=len(names))
    pairs, count = positives * negatives, np.bincount(user, minlength=len(names))
    both = pairs > 0
    return UserAUC(
        users=names[both],
        auc=wins[both] / pairs[both],
        impressions=count[both],
        num_excluded=int(np.count_nonzero(~both)),
        excluded_impressions=int(count[~both].sum()),
    )


def gauc(labels: Values, scores: Values, users: Rows) -> float:
    """Return the mean AUC within users, weighted by impressions, over the users who have both classes."""
    return user_auc(labels, scores, users).gauc
