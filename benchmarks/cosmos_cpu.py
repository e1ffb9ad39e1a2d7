"""Encoding and decoding with the Cosmos DV4x8x8 shape (104.7 M parameters) in float32, random weights: 9 frames of 128x128.

    python benchmarks/cosmos_cpu.py [--rounds=3] [--beside=official.json]

Prints frames/s as JSON, compilation not counted. Run it on an idle machine. `--beside` names a file with the frames/s of other code, measured
on this machine just now: {"encode": ..., "decode": ...}.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from lumos.evaluation.evaluate import versions
from lumos.interop import cosmos
from lumos.runtime.huge_pages import use_huge_pages
from lumos.tokenizers.causal_vae import make_definition


def main():
    use_huge_pages()
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path)
    options = parser.parse_args()
    rounds, others = options.rounds, json.loads(options.beside.read_text()) if options.beside else {}
    config = cosmos.CONFIGS["dv4x8x8"]
    tokenizer = cosmos.CosmosTokenizer(config, jax.jit(make_definition(config).init)(jax.random.key(0)))
    video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 128, 128, 3)).astype(np.float32)
    indices = tokenizer.encode(video)
    result = {"parameters": tokenizer.definition.num_params, "versions": versions()}
    for name, run in (("encode", lambda: tokenizer.encode(video)), ("decode", lambda: tokenizer.decode(indices))):
        run().block_until_ready()
        wall, cpu = [], []
        for _ in range(rounds):
            start, start_cpu = time.perf_counter(), time.process_time()
            run().block_until_ready()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
        rate = round(9 / float(np.median(wall)), 2)
        result[name] = {
            "frames_per_s": rate,
            "best_frames_per_s": round(9 / min(wall), 2),
            "cpu_seconds": round(float(np.median(cpu)), 3),
        }
        if name in others:
            result[name] |= {"beside": others[name], "ratio": round(rate / others[name], 2)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
