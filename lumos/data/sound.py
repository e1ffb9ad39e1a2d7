"""Sound as a stream: samples -> the loudness of a few bands of pitch for every frame, and sounds that shapes make for tests.

The bands are columns of the file behind a manifest's `actions`, and `data.streams` sorts them into bins, as anything that comes with frames:

    np.savez("clip.npz", sound=mel_bands(samples_S, 16_000, fps=12, num_frames=49))
    config.data.streams = ({"name": "sound", "codes": 32, "low": -8.0, "high": 2.0},)

Tokens of another codec are columns of whole numbers. The loudness of bands cannot be played again; a codec that is to be heard comes from outside.
"""

from __future__ import annotations

import numpy as np

_LOWEST = 60.0  # hertz


def mel_bands(samples_S: np.ndarray, rate: int, *, fps: float, num_frames: int, bands: int = 8) -> np.ndarray:
    """Return the log10 energy of bands of equal width in mel, float32 [num_frames, bands], of the chunk that ends with each frame.

    Samples beyond the end are silence. Chunk f holds the samples of the time (f - 1, f] / fps, so that no frame hears what comes later.

    Args:
      samples_S: float, nominally in [-1, 1], `rate` of them a second.
    """
    size = int(round(rate / fps))
    padded = np.zeros((num_frames + 1) * size, np.float64)
    heard = np.asarray(samples_S, np.float64)[: num_frames * size]
    padded[size : size + len(heard)] = heard
    chunks_FS = padded[: num_frames * size].reshape(num_frames, size) * np.hanning(size)
    power_FK = np.abs(np.fft.rfft(chunks_FS)) ** 2 / size
    edges = np.linspace(_mel(_LOWEST), _mel(rate / 2), bands + 1)
    band_K = np.searchsorted(edges, _mel(np.fft.rfftfreq(size, 1 / rate)), side="right") - 1
    energy_FB = np.stack([power_FK[:, band_K == band].sum(1) for band in range(bands)], axis=1)
    return np.log10(energy_FB + 1e-8).astype(np.float32)


def of_places(places_F2: np.ndarray, rate: int, fps: float) -> np.ndarray:
    """Return what a shape at such places (row, column in [0, 1]) sounds like, float32 samples of F / fps seconds.

    Its tone is the higher the higher it stands (220 to 3520 hertz), and a knock is heard where it turns round, as when it bounces.
    """
    size = int(round(rate / fps))
    pitch_S = np.repeat(220.0 * 16.0 ** (1 - np.asarray(places_F2)[:, 0]), size)
    tone_S = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch_S) / rate)
    for frame in np.flatnonzero(turns(places_F2)):
        time = np.arange(size) / rate
        tone_S[frame * size : (frame + 1) * size] += 0.6 * np.exp(-60 * time) * np.sin(2 * np.pi * 90 * time)
    return tone_S.astype(np.float32)


def turns(places_F2: np.ndarray) -> np.ndarray:
    """Return at which frames a shape turns round along an axis, bool [F]."""
    steps = np.diff(np.asarray(places_F2), axis=0)
    found = np.zeros(len(places_F2), bool)
    found[1:-1] = (steps[1:] * steps[:-1] < 0).any(1)
    return found


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)
