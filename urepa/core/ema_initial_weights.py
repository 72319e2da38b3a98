"""The weight of the initial weights in the exponential moving average (EMA) of the weights.

Update n + 1 of an average, after n applied ones, is θ_ema ← d_n·θ_ema + (1−d_n)·θ. Without warm-up d_n = d. With it
d_n = min(d, (1 + n) / (10 + n)), the rule of TensorFlow's `tf.train.ExponentialMovingAverage(decay, num_updates)`; n is
0 at the first update, whose decay is therefore 0.1.
"""

from __future__ import annotations

from math import ceil, comb

SHARE = "ema/initial_share"  # key of the logged metric
LAGGING = 0.05  # with a larger share, the average says little about the trained weights
FIRST_DECAY = 0.1  # the first and smallest decay of the warm-up


def initial_share(decay: float, updates: int, warmup: bool) -> float:
    """The weight of the initial weights in the average after `updates` applied updates, in [0, 1]: the product of their
    decays. While the warm-up lasts that is Π_{i<n} (1 + i) / (10 + i) = 1 / C(n + 9, 9)."""
    slower = max(0, ceil((10 * decay - 1) / (1 - decay))) if warmup else 0  # updates whose decay is below `decay`
    warm = min(updates, slower)
    return float(decay ** (updates - warm)) / comb(warm + 9, 9)


def lag_sentence(share: float, decay: float, updates: int, warmup: bool, *, ahead: bool = False) -> str:
    """A sentence on EMA weights with this share of initial weights, with advice. `ahead`: the sentence is about the
    future, before the first of these updates."""
    advice = "train longer" if warmup else "train longer, lower trainer.ema_decay, or set trainer.ema_warmup=true"
    hold = "will still hold" if ahead else "still hold"
    return (
        f"the EMA weights, which validation and evaluations use, {hold} {100 * share:.0f} % of the initial weights "
        f"(trainer.ema_decay={decay:g} over {updates:,} updates): {advice}"
    )


def lag_ahead(decay: float, updates: int, warmup: bool) -> str:
    """The sentence on the last step, for printing before the first one; "" if the share will be below `LAGGING`."""
    share = initial_share(decay, updates, warmup)
    return lag_sentence(share, decay, updates, warmup, ahead=True) if share > LAGGING else ""
