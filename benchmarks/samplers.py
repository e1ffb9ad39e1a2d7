"""What search and Jacobi iteration buy on trained models of moving_shapes. Run on an idle machine; minutes.

    python benchmarks/samplers.py --workdir=demo/transformer               # best of N and trees: prompts followed, passes over each code
    python benchmarks/samplers.py --jacobi --workdir=NEXT/transformer      # a next-token model: passes of the model, one by one and solved

Prints one line of JSON for each setting. Intervals are 95 % bootstrap intervals over prompts.
"""

import argparse
import dataclasses
import json
import time

import numpy as np

from lumos import config_loading
from lumos.checkpoint import read_config
from lumos.data import moving_shapes
from lumos.evaluation import metric
from lumos.evaluation.evaluate import versions
from lumos.generation.jacobi import Jacobi
from lumos.generation.sampler import Confidence
from lumos.generation.search import BestOf, NoSearch, Tree
from lumos.videos.generator import Generator

_CHUNKS = (6, 36)  # codes that are solved together: a row of a frame of the demo, and a frame


def prompts_of(generator, num):
    level = config_loading.parse(read_config(generator.config.tokenizer_workdir)).shapes.level
    return moving_shapes.test_prompts(level, num, seed=0)


def search(generator, num, scores):
    """Whether colour, shape and direction are right, against that of the first clip of the same prompts and noise."""
    settings, asked, before = generator.config.generate, prompts_of(generator, num), None
    frames = generator.config.sequence.grid[0]
    passes = (settings.steps + 1) * len(settings.guidance.branches())  # over each code of a clip
    for score in scores:
        for found, clips in (
            (NoSearch(), 1.0),
            *((BestOf(num=n, score=score), n) for n in (2, 4)),
            *((Tree(branches=(n,), prune=(1,), score=score), (n + frames - 1) / frames) for n in (2, 4)),
        ):
            if not found.is_on and before is not None:
                continue
            with_search = dataclasses.replace(settings, search=found)
            videos = generator.generate([prompt.caption for prompt in asked], settings=with_search).videos
            right = np.array([all(moving_shapes.score(*pair).values()) for pair in zip(videos, asked)], float)
            before = right if before is None else before
            share, gain = metric.mean(right, ""), metric.mean(right - before, "")
            yield {
                "search": found.name, "candidates": getattr(found, "num", None) or getattr(found, "branches", (1,))[0],
                "score": score if found.is_on else None, "passes": round(passes * clips, 1), "all_three": rounded(share),
                "gain": rounded(gain), "prompts": num,
            }  # fmt: skip


def rounded(found):
    return [round(float(x), 3) for x in (found.value, found.low, found.high)]


def jacobi(generator, num, _):
    """Passes of the model and seconds of a clip, one clip at a time; the codes are the same whichever way they are made."""
    asked, settings = prompts_of(generator, num), generator.config.generate
    wanted = {"one by one": Confidence()}
    for chunk in _CHUNKS:
        for start in (False, True):
            name = f"chunk {chunk}, from {'the previous frame' if start else 'zeros'}"
            wanted[name] = Jacobi(chunk=chunk, from_previous=start)
    codes = {}
    for name, sampler in wanted.items():
        made, passes, seconds = [], [], []
        for i, prompt in enumerate(asked):
            start = time.perf_counter()
            session = generator.session(prompt.caption, seed=i, settings=dataclasses.replace(settings, sampler=sampler))
            made.append(np.stack(list(session.frames(generator.config.sequence.grid[0])), axis=1))
            seconds.append(time.perf_counter() - start)
            passes.append(int(session.num_forwards))
        codes[name] = np.concatenate(made)
        same = (codes[name] == codes["one by one"]).all((1, 2, 3))
        yield {
            "sampler": name, "passes": rounded(metric.mean(passes, "")), "seconds": round(float(np.median(seconds)), 3),
            "clips_that_are_the_same": int(same.sum()), "clips": num,
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--jacobi", action="store_true")
    parser.add_argument("--scores", default="text_ratio,likelihood", help="of the search")
    parser.add_argument("--prompts", type=int, default=0, help="by default 256, and 32 with --jacobi")
    flags = parser.parse_args()
    generator = Generator.load(flags.workdir)
    measure, num = (jacobi, 32) if flags.jacobi else (search, 256)
    for line in measure(generator, flags.prompts or num, flags.scores.split(",")):
        print(json.dumps(line), flush=True)
    print(json.dumps({"versions": versions()}))


if __name__ == "__main__":
    main()
