"""How well sound and pictures belong together: found again among others, and beats that fall together."""

from __future__ import annotations

import numpy as np


def info_nce(first_ND: np.ndarray, second_ND: np.ndarray, temperature: float = 0.07) -> tuple[float, float]:
    """Return the InfoNCE loss (nats) of N pairs of features, both ways, and how often a partner is the nearest (cosine) of all N.

    Chance is log N and 1 / N. Equally near ones share a place.
    """
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine_NN = unit(np.asarray(first_ND, np.float64)) @ unit(np.asarray(second_ND, np.float64)).T
    losses, found = [], []
    for logits_NN in (cosine_NN / temperature, cosine_NN.T / temperature):
        peak_N1 = logits_NN.max(1, keepdims=True)
        losses.append((np.log(np.exp(logits_NN - peak_N1).sum(1)) + peak_N1[:, 0] - np.diag(logits_NN)).mean())
        best_NN = logits_NN >= peak_N1 - 1e-9
        found.append((np.diag(best_NN) / best_NN.sum(1)).mean())
    return float(np.mean(losses)), float(np.mean(found))


def beats(loudness_F: np.ndarray) -> np.ndarray:
    """Return the frames at which loudness (or motion) rises most: peaks of its increase above their mean, int [K]."""
    rise_F = np.maximum(np.diff(np.asarray(loudness_F, np.float64), prepend=loudness_F[:1]), 0)
    left, right = np.append(0, rise_F[:-1]), np.append(rise_F[1:], 0)
    peaks = (rise_F >= left) & (rise_F > right)
    return np.flatnonzero(peaks & (rise_F > rise_F.mean()))


def beat_alignment(heard: np.ndarray, seen: np.ndarray, width: float = 3.0) -> float:
    """Return the mean over beats that are seen of exp(-d^2 / (2 width^2)), d the frames to the nearest one that is heard (AIST++,
    arXiv 2101.08779, equation 6); nan without seen beats, 0 without heard ones."""
    if not len(seen):
        return float("nan")
    if not len(heard):
        return 0.0
    distance = np.abs(np.asarray(seen)[:, None] - np.asarray(heard)).min(1)
    return float(np.exp(-(distance**2) / (2 * width**2)).mean())
