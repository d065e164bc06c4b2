"""The losses over pairs of a batch and a memory, as configurations.

`s` is the similarity of an anchor and a row of the memory; P and N are the anchor's positives (rows of its label) and
negatives. Every loss is defined for one anchor; `memory_loss` reduces over the anchors.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longview.config import Config


class ContrastiveLoss(Config):
    """sum over P of max(0, positive_margin - s) + sum over N of max(0, s - negative_margin).

    Source: Hadsell, Chopra and LeCun 2006, in the form of cross-batch memory (arXiv 1912.06798).
    """

    positive_margin: float = 1.0
    negative_margin: float = 0.5


class TripletLoss(Config):
    """max(0, s_n - s_p + margin) of one positive p and one negative n; 0 for an anchor that lacks either.

    The positive is the least similar one (`hardest`) or the most similar (`easiest`); the negative is the most
    similar one (`hardest`), or the most similar among those less similar than the positive (`semi-hard`). Among
    equals, the first row of the memory is taken.

    Source: FaceNet (arXiv 1503.03832); easy positives: Xuan, Stylianou and Pless (arXiv 1904.04370).
    """

    margin: float = Field(default=0.1, ge=0)
    positive: Literal["hardest", "easiest"] = "hardest"
    negative: Literal["hardest", "semi-hard"] = "semi-hard"


class MultiSimilarityLoss(Config):
    """log(1 + sum over P of exp(-alpha (s - base))) / alpha + log(1 + sum over N of exp(beta (s - base))) / beta.

    Source: Wang et al. (arXiv 1904.06627), without its mining of pairs.
    """

    alpha: float = Field(default=2.0, gt=0)
    beta: float = Field(default=50.0, gt=0)
    base: float = 0.5


class InfoNCELoss(Config):
    """Mean over p in P of -log(exp(s_p / t) / (exp(s_p / t) + sum over N of exp(s_n / t))), t the temperature.

    0 for an anchor without positives. Source: van den Oord, Li and Vinyals (arXiv 1807.03748).
    """

    temperature: float = Field(default=0.07, gt=0)


class SupervisedContrastiveLoss(Config):
    """Mean over p in P of -log(exp(s_p / t) / sum over P and N of exp(s / t)), t the temperature.

    0 for an anchor without positives. Source: Khosla et al. (arXiv 2004.11362), the loss L_out.
    """

    temperature: float = Field(default=0.1, gt=0)


class CircleLoss(Config):
    """log(1 + sum over N of exp(gamma a_n (s - m)) * sum over P of exp(-gamma a_p (s - 1 + m))), m the margin.

    a_n = max(0, s + m) and a_p = max(0, 1 + m - s) weigh a pair and carry no gradient. 0 for an anchor that lacks
    positives or negatives. Source: Sun et al. (arXiv 2002.10857).
    """

    margin: float = 0.4
    gamma: float = Field(default=80.0, gt=0)


PairLoss = ContrastiveLoss | TripletLoss | MultiSimilarityLoss | InfoNCELoss | SupervisedContrastiveLoss | CircleLoss
PAIR_LOSSES: dict[str, type[PairLoss]] = {
    "contrastive": ContrastiveLoss,
    "triplet": TripletLoss,
    "multi-similarity": MultiSimilarityLoss,
    "info-nce": InfoNCELoss,
    "supervised-contrastive": SupervisedContrastiveLoss,
    "circle": CircleLoss,
}
