"""A transform coder without learning, at the bits of a tokenizer: what a trained one has to beat on the same clips.

    python benchmarks/haar_baseline.py --config=configs/tokenizer_quantizers.py:fsq [--bits=10] [--split=test]

A cell of 4x8x8 pixels becomes Haar coefficients in opponent colours: the low-pass first, then the next bands. Its bits (those
of one token of the config) go one by one to the coefficient whose uniform quantiser gains most on clips of the training split;
a coefficient without bits is its mean. Then `evaluate.num_clips` clips of the split, in the order and with the measures
of `lumos evaluate`. Prints JSON.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading
from lumos.data.pipeline import make_pipeline
from lumos.evaluation.evaluate import versions
from lumos.tokenizers.pixel_quality import psnr, ssim, to_float, to_uint8
from lumos.tokenizers.wavelet import haar_patch, haar_unpatch

PATCH = 4  # a cell is two by two of these patches
# Rows: brightness, red - blue, red + blue - 2 green; orthonormal, so errors count alike before and after.
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
MOST_BITS = 8  # of one coefficient


def analyse(video_BFYXC):
    """Turn video in [-1, 1] into the coefficients of its cells, [B, T, Y / 8, X / 8, 4 * 64 * 3], the low-pass first.

    Every coefficient is scaled alike: a squared error of one is a squared error of one third in each pixel and colour.
    """
    bands = haar_patch(video_BFYXC, PATCH)
    batch, frames, rows, columns, _ = bands.shape
    blocks = bands.reshape(batch, frames, rows // 2, 2, columns // 2, 2, PATCH**3, 3)
    cells = jnp.einsum("bthywxnc,Hy,Wx,kc->bthwHWnk", blocks, _PAIR, _PAIR, COLOURS)
    return cells.reshape(batch, frames, rows // 2, columns // 2, -1)


def synthesise(cells_BTHWN):
    """Invert `analyse`."""
    batch, frames, rows, columns, _ = cells_BTHWN.shape
    cells = cells_BTHWN.reshape(batch, frames, rows, columns, 2, 2, PATCH**3, 3)
    blocks = jnp.einsum("bthwHWnk,Hy,Wx,kc->bthywxnc", cells, 2 * _PAIR, 2 * _PAIR, COLOURS)
    return haar_unpatch(blocks.reshape(batch, frames, 2 * rows, 2 * columns, -1), PATCH)


_PAIR = np.array([[1, 1], [1, -1]]) / 2


class UniformQuantizer:
    """2**bits equal steps around the mean; their width is the one of least error on the values."""

    def __init__(self, values, bits):
        self.mean, self._top = values.mean(), 2**bits - 1
        widths = np.linspace(0, 8, 65)[1:] * max(values.std(), 1e-9) / 2**bits if bits else [1.0]
        errors = []
        for self._width in widths:
            errors.append(np.square(self(values) - values).mean())
        self._width, self.error = widths[int(np.argmin(errors))], min(errors)

    def __call__(self, values):
        digits = np.clip(np.round((values - self.mean) / self._width + self._top / 2), 0, self._top)
        return self.mean + (digits - self._top / 2) * self._width


def allocate(cells_NC, bits):
    """Return {coefficient: quantiser} that spend `bits` bits a cell, one by one where they gain most."""
    most_varied = np.argsort(-cells_NC.var(axis=0))[: 4 * bits]
    ladder = {c: [UniformQuantizer(cells_NC[:, c], b) for b in range(min(bits, MOST_BITS) + 1)] for c in most_varied}
    spent = dict.fromkeys(ladder, 0)
    for _ in range(bits):
        gain = lambda c: ladder[c][spent[c]].error - ladder[c][min(spent[c] + 1, len(ladder[c]) - 1)].error
        spent[max(spent, key=gain)] += 1
    return {int(c): ladder[c][b] for c, b in spent.items()}, {int(c): b for c, b in spent.items() if b}


def clips(config, split, train):
    num_batches = max(1, config.evaluate.num_clips // config.data.batch_size)
    with make_pipeline(config, split, process_index=0, process_count=1, train=train) as pipeline:
        for _, batch in zip(range(num_batches), pipeline):
            yield batch["video"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--bits", type=int, help="bits of a cell; by default those of the config's tokens")
    parser.add_argument("--split", help="by default that of the config's evaluation")
    arguments = parser.parse_args()
    config = config_loading.load(arguments.config)
    split = arguments.split or config.evaluate.split
    bits = arguments.bits or int(np.log2(config.codebook_size)) * config.tokenizer.parts
    to_cells, to_video = jax.jit(lambda video: analyse(to_float(video))), jax.jit(lambda x: to_uint8(synthesise(x)))
    seen = np.concatenate([np.asarray(to_cells(video)) for video in clips(config, config.data.split, train=True)])
    mean = seen.reshape(-1, seen.shape[-1]).mean(axis=0)
    quantizers, spent = allocate(seen.reshape(-1, seen.shape[-1]), bits)
    scores = []
    for video in clips(config, split, train=False):
        cells = np.asarray(to_cells(video))
        coded = np.broadcast_to(mean, cells.shape).copy()
        for c, quantizer in quantizers.items():
            coded[..., c] = quantizer(cells[..., c])
        recon = to_video(coded)
        scores.append((np.asarray(psnr(recon, video)), np.asarray(ssim(recon, video))))
    psnrs, ssims = (np.concatenate(values) for values in zip(*scores))
    low_pass = {"brightness": 0, "red - blue": 1, "red + blue - 2 green": 2}
    result = {
        "psnr": float(psnrs.mean()),
        "ssim": float(ssims.mean()),
        "num_clips": len(psnrs),
        "split": split,
        "bits_per_cell": bits,
        "bits_of_low_pass": {name: spent.get(c, 0) for name, c in low_pass.items()},
        "bits_of_other_bands": {str(c): b for c, b in spent.items() if c > 2},
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
