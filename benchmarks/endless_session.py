"""An endless session: time and bytes of late frames against early ones; dispatch of a frame. Run on an idle machine.

    python benchmarks/endless_session.py [--frames=1000] [--side=8] [--passes=8]

Prints one line of JSON.
"""

import argparse
import dataclasses
import json
import time

import jax
import numpy as np

from lumos import config_loading
from lumos.evaluation.evaluate import versions
from lumos.generation.policy import Window
from lumos.generation.positions import Relative
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--side", type=int, default=8, help="cells of a latent frame, each way")
    parser.add_argument("--passes", type=int, default=8)
    options = parser.parse_args()
    num, side = options.frames, options.side
    config = config_loading.default()
    config.model.text_vocab, config.model.visual_vocab = 512, 1000
    config.sequence.grid, config.sequence.text_length, config.generate.steps = (5, side, side), 16, options.passes
    config = config_loading.parse(config)
    objective = TransformerObjective(config)
    settings = dataclasses.replace(config.generate, cache=Window(width=5, sink=1), positions=Relative(horizon=5))
    session = Session(
        make_engine(config, objective.definition, settings=settings), objective.definition.init(jax.random.key(0))
    )
    text = np.random.default_rng(0).integers(4, 512, (1, 16)).astype(np.int32)
    session.prefill(text, np.array([16], np.int32), row_keys(0, 1))
    milliseconds, dispatch, sizes = [], [], []
    for _ in range(num):
        start = time.perf_counter()
        codes = session.advance()
        dispatch.append(1e3 * (time.perf_counter() - start))
        np.asarray(codes)
        milliseconds.append(1e3 * (time.perf_counter() - start))
        sizes.append(session.num_bytes)
    # Medians over windows: single frames are noisy.
    early, late = milliseconds[10:110], milliseconds[-100:]
    result = {
        "frames": num,
        "side": side,
        "passes": options.passes,
        "ms_frame_10_to_110": round(float(np.median(early)), 2),
        "ms_last_100": round(float(np.median(late)), 2),
        "ratio": round(float(np.median(late) / np.median(early)), 3),
        "dispatch_ms": round(float(np.median(dispatch)), 3),
        "bytes": sorted(set(sizes)),
        "programs": session.num_programs,
        "versions": versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
