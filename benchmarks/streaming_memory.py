"""Streaming against one pass: largest difference over 201 frames, and peak memory from 33 to 201 frames.

    python benchmarks/streaming_memory.py [--frames=33,105,201] [--side=64] [--workdir=TOKENIZER]

The body with position norms and windowed temporal attention (8 latent frames), float32, with random weights or those of a
trained tokenizer. Every length runs in a process of its own, because peak memory only grows. Prints JSON.
"""

import argparse
import json
import resource
import subprocess
import sys

import jax
import numpy as np

from lumos.config import TokenizerConfig
from lumos.evaluation.evaluate import versions
from lumos.tokenizers import pretrained
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.streaming import VideoStream

CONFIG = TokenizerConfig(channels=32, channel_mult=(1, 2, 2), norm="position", temporal_window=8)


def setup(workdir):
    """Return the config, the network and its weights."""
    if workdir:
        tokenizer = pretrained.load(workdir)
        return tokenizer.config, make_definition(tokenizer.config), tokenizer.params
    definition = make_definition(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), definition.abstract)
    return CONFIG, definition, params


def clip(frames, side):
    for i in range(frames):
        yield np.random.default_rng(i).uniform(-1, 1, (1, 1, side, side, 3)).astype(np.float32)


def stream_once(frames, side, workdir):
    """Encode and decode chunk by chunk, keeping nothing; return peak memory in MB."""
    config, definition, params = setup(workdir)
    stream, chunk = VideoStream(definition, config, params), []
    for i, frame in enumerate(clip(frames, side)):
        chunk.append(frame)
        if i == 0 or len(chunk) == 8:
            stream.decode(stream.encode(np.concatenate(chunk, axis=1)))
            chunk = []
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def difference(frames, side, workdir):
    """Return the largest difference of latents, and of pixels decoded from the same tokens."""
    config, definition, params = setup(workdir)
    video = np.concatenate(list(clip(frames, side)), axis=1)
    whole = jax.jit(lambda p, v: definition.bind(p).latents(v))(params, video)
    stream = VideoStream(definition, config, params)
    chunks = np.split(video, range(1, frames, 8), axis=1)
    latents = np.concatenate([stream.latents(chunk) for chunk in chunks], axis=1)
    tokens = np.asarray(definition.bind(params).quantizer(whole).indices)
    pixels = np.asarray(jax.jit(lambda p, t: definition.bind(p).decode(t))(params, tokens))
    parts = np.split(tokens, range(1, tokens.shape[1], 2), axis=1)
    streamed = np.concatenate([stream.decode(part) for part in parts], axis=1)
    return {
        "latents": float(np.abs(latents - whole).max()),
        "latent_scale": float(np.abs(whole).max()),
        "pixels": float(np.abs(streamed - pixels).max()),
        "pixel_scale": float(np.abs(pixels).max()),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", default="33,105,201")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(stream_once(arguments.one, arguments.side, arguments.workdir))
        return
    lengths = [int(text) for text in arguments.frames.split(",")]
    command = [sys.executable, __file__, f"--side={arguments.side}", f"--workdir={arguments.workdir}"]
    peaks = {
        frames: float(subprocess.run([*command, f"--one={frames}"], capture_output=True, check=True).stdout)
        for frames in lengths
    }
    found = {
        "frames": max(lengths),
        "side": arguments.side,
        "weights": arguments.workdir or "random",
        "largest_difference": difference(max(lengths), arguments.side, arguments.workdir),
    }
    print(json.dumps({**found, "peak_mb": peaks, "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
