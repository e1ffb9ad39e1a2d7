"""Distances between a set of generated clips and a reference set: FVD and KVD on I3D logits.

Both depend on how many clips there are, and on more than motion (Ge et al., arXiv 2404.12391). So their numbers stand in the protocol, and the distances of two real halves, of still and of shuffled clips stand beside.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from lumos.evaluation import i3d, metric
from lumos.evaluation.metric import Metric


@dataclasses.dataclass(frozen=True)
class Reference:
    """What generated clips are compared with: the features of real clips [N, 400], their controls, and their protocol."""

    features: np.ndarray
    controls: dict[str, Metric]
    protocol: str


def reference(real: np.ndarray) -> Reference:
    """Return the reference of real clips, uint8 [N, F, Y, X, 3]."""
    theirs, still, shuffled = versions(real)
    return Reference(theirs, controls(theirs, still, shuffled), protocol_of(real))


def distances(real: Reference, made: np.ndarray, what: str) -> dict[str, Metric]:
    """Return FVD and KVD of clips uint8 [M, F, Y, X, 3] to a reference of N, and its controls; M is cut to a multiple of N.

    what: how the clips were made, for the protocol.
    """
    num = len(real.features)
    made = made[: max(len(made) // num, 1) * num]
    protocol = f"{len(made)} made against {num} real clips; {real.protocol}; {what}"
    return both("", real.features, features(made), protocol, "low") | real.controls


def protocol_of(video_BFYXC: np.ndarray) -> str:
    """Return which of the variants of FVD this is, on what."""
    frames, height, width = video_BFYXC.shape[1:4]
    return (
        f"{frames} frames of {width}x{height}, stretched to 224x224 (bilinear, half-pixel centres); logits of I3D, Kinetics-400 from "
        "scratch; unbiased covariance"
    )


def versions(video_BFYXC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of clips, of the clips with their first frame held, and of the clips with their frames out of order."""
    frames = video_BFYXC.shape[1]
    order = np.random.default_rng(0).permutation(frames)
    return features(video_BFYXC), features(video_BFYXC[:, :1].repeat(frames, axis=1)), features(video_BFYXC[:, order])


def controls(real_NC: np.ndarray, still_NC: np.ndarray, shuffled_NC: np.ndarray) -> dict[str, Metric]:
    """Return what a distance between so many clips is to be read against; see `versions`."""
    num = len(real_NC)
    return (
        both("_of_halves", real_NC[::2], real_NC[1::2], f"the floor: two halves of the {num} real clips")
        | both("_of_still", real_NC, still_NC, f"control: {num} real clips against themselves, first frame held")
        | both("_of_shuffled", real_NC, shuffled_NC, f"control: {num} real clips against themselves, frames shuffled")
    )


def both(
    name: str, a_NC: np.ndarray, b_MC: np.ndarray, what: str, better: str = "", *, paired: bool = False
) -> dict[str, Metric]:
    """Return FVD and KVD between two sets of features as metrics `fvd<name>` and `kvd<name>`.

    paired: the second set is made of the first, clip by clip, and is drawn with it for the interval.
    """
    sizes = (len(a_NC),) if paired else (len(a_NC), len(b_MC))
    each = (lambda call: lambda counts: call(counts, counts)) if paired else (lambda call: call)
    frechet = lambda a_N, b_M: i3d.frechet_distance(a_NC, b_MC, a_N, b_M)
    kernel = f"{what}; unbiased MMD^2, cubic kernel"
    return {
        f"fvd{name}": metric.statistic(each(frechet), sizes, what, better),
        f"kvd{name}": metric.statistic(each(kernel_distances(a_NC, b_MC)), sizes, kernel, better),
    }


def kernel_distance(a_NC: np.ndarray, b_MC: np.ndarray) -> float:
    """Return the unbiased squared MMD of two sets of features under the kernel (x.y / C + 1)^3 (KID's, arXiv 1801.01401)."""
    return kernel_distances(a_NC, b_MC)(np.ones(len(a_NC)), np.ones(len(b_MC)))


def kernel_distances(a_NC: np.ndarray, b_MC: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function of how often each feature counts, [N] and [M], that gives their `kernel_distance`."""
    a, b = np.asarray(a_NC, np.float64), np.asarray(b_MC, np.float64)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    kernels = kernel(a, a), kernel(b, b), kernel(a, b)

    def within(k_NN: np.ndarray, count_N: np.ndarray) -> float:
        num, same = count_N.sum(), count_N @ np.diag(k_NN)  # a clip is not compared with itself, but with its copies
        return (count_N @ k_NN @ count_N - same) / (num * (num - 1)) if num > 1 else same

    def distance(a_N: np.ndarray, b_M: np.ndarray) -> float:
        across = a_N @ kernels[2] @ b_M / (a_N.sum() * b_M.sum())
        return float(within(kernels[0], a_N) + within(kernels[1], b_M) - 2 * across)

    return distance


def features(video_BFYXC: np.ndarray) -> np.ndarray:
    """Return the I3D logits of clips, [N, 400]. Raises UserError where the weights are not installed."""
    params, run = _network()
    return np.concatenate([np.asarray(run(params, clip[None])) for clip in video_BFYXC])  # one at a time: it is large


@functools.cache
def _network():
    return jax.device_put(i3d.load_params()), jax.jit(i3d.logits)
