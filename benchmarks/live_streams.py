"""Streams of many viewers in one batch, and how soon the first frame of a new one is there. Run on an idle machine.

    python benchmarks/live_streams.py --workdir=demo/transformer [--viewers=1,4,16] [--frames=100] [--passes=8]

Tokens and pixels of a `Pool` under the cache "fifo" of two latent frames, without guidance. The first frame is that of a viewer who joins a
pool that has made frames before, so that nothing compiles. Prints one line of JSON for each number of viewers.
"""

import argparse
import dataclasses
import json
import time

import numpy as np

from lumos.evaluation.evaluate import versions
from lumos.generation.guidance import NoGuidance
from lumos.generation.policy import Fifo
from lumos.generation.positions import Relative
from lumos.streaming.live import Options
from lumos.streaming.pool import Pool
from lumos.videos.generator import Generator


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--viewers", default="1,4,16")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--passes", type=int, default=8)
    asked = parser.parse_args()
    generator = Generator.load(asked.workdir)
    settings = dataclasses.replace(
        generator.config.generate,
        steps=asked.passes,
        guidance=NoGuidance(),
        cache=Fifo(width=2),
        positions=Relative(horizon=2),
    )
    for viewers in map(int, asked.viewers.split(",")):
        pool = Pool(generator, viewers, options=Options(settings=settings))
        seats = [pool.join("a red circle moves left", seed=i)[0] for i in range(viewers)]
        for _ in range(3):
            pool.step()
        pool.leave(seats[0])
        begin = time.perf_counter()
        pool.join("a blue square moves up", seed=99)
        first = time.perf_counter() - begin
        gaps, pixel_frames = [], 0
        for _ in range(asked.frames):
            begin = time.perf_counter()
            pixel_frames += sum(shown.pixels.shape[1] for shown in pool.step().values())
            gaps.append(time.perf_counter() - begin)
        found = {
            "viewers": viewers, "pixel_frames_per_s": round(pixel_frames / sum(gaps), 1),
            "latent_frames_per_s": round(asked.frames * viewers / sum(gaps), 1), "passes_per_frame": asked.passes + 1,
            "gap_ms": [round(1e3 * float(np.quantile(gaps, q)), 1) for q in (0.5, 0.95, 1)], "first_frame_s": round(first, 2),
        }  # fmt: skip
        print(json.dumps(found | {"versions": versions()}), flush=True)


if __name__ == "__main__":
    main()
