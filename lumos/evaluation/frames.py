"""Measurements of single frames: nearness to the truth, and statistics without one."""

from __future__ import annotations

import jax
import numpy as np

from lumos.evaluation.reconstruction import lpips_of
from lumos.tokenizers.pixel_quality import frame_psnr, ssim

_psnr = jax.jit(frame_psnr)
_ssim = jax.jit(ssim)
_SSIM_WINDOW = 11


def compare_frames(truth: np.ndarray, made: np.ndarray, networks: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return PSNR, SSIM (of frames large enough for its window) and LPIPS (of the networks named) of each frame, [B, F]."""
    found = {"psnr": np.asarray(_psnr(truth, made))}
    shape = truth.shape[:2]
    each = lambda video: video.reshape(-1, 1, *video.shape[2:])
    if min(truth.shape[2:4]) >= _SSIM_WINDOW:
        found["ssim"] = np.asarray(_ssim(each(truth), each(made))).reshape(shape)
    for name in networks:
        if name != "i3d":
            run = lpips_of(name)
            values = [np.asarray(run(a[None], b[None])) for a, b in zip(each(truth), each(made))]
            found[f"lpips_{name}"] = np.reshape(values, shape)
    return found


def frame_statistics(video_BFYXC: np.ndarray) -> dict[str, np.ndarray]:
    """Return statistics of clips, uint8 [B, F, Y, X, 3]: sharpness and colour_shift [B, F], motion [B, F - 1] and flicker [B, F - 2]."""
    video = video_BFYXC.astype(np.float32)
    grey = video.mean(-1)
    laplacian = (
        grey[..., 1:-1, 2:]
        + grey[..., 1:-1, :-2]
        + grey[..., 2:, 1:-1]
        + grey[..., :-2, 1:-1]
        - 4 * grey[..., 1:-1, 1:-1]
    )
    colour = video.mean((2, 3))
    found = {
        "sharpness": laplacian.var((2, 3)),
        "colour_shift": np.linalg.norm(colour - colour[:, :1], axis=-1),
    }
    if video.shape[1] > 1:
        found["motion"] = np.abs(video[:, 1:] - video[:, :-1]).mean((2, 3, 4))
    if video.shape[1] > 2:
        found["flicker"] = np.abs(video[:, 1:-1] - (video[:, 2:] + video[:, :-2]) / 2).mean((2, 3, 4))
    return found
