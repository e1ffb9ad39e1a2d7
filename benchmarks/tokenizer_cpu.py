"""Encode + decode together, the DV4x8x8 shape by default (104.7 M parameters, random weights): 9 frames of 128x128.

    python benchmarks/tokenizer_cpu.py [--config=configs/tokenizer_dv4x8x8.py] [--clip=9,128,128] [--dtype=float32] [--rounds=5]

Prints frames/s as JSON; compilation is not counted. Run it on an idle machine. `benchmarks/cosmos_cpu.py` times both
directions apart, beside the figures of the released PyTorch code.
"""

import argparse
import json
import time

import jax
import numpy as np

from lumos import config_loading
from lumos.evaluation.evaluate import versions
from lumos.tokenizers.causal_vae import make_definition


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/tokenizer_dv4x8x8.py")
    parser.add_argument("--clip", default="9,128,128")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    frames, height, width = (int(text) for text in arguments.clip.split(","))
    config = config_loading.load(arguments.config, {"tokenizer.dtype": arguments.dtype}).tokenizer
    definition = make_definition(config)
    params = jax.jit(definition.init)(jax.random.key(0))
    encode = jax.jit(lambda params, video: definition.bind(params).encode(video))
    decode = jax.jit(lambda params, tokens: definition.bind(params).decode(tokens))
    video = np.random.default_rng(0).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)
    decode(params, encode(params, video)).block_until_ready()
    wall, cpu = [], []
    for _ in range(arguments.rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        decode(params, encode(params, video)).block_until_ready()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    result = {
        "what": "encode + decode",
        "parameters": definition.num_params,
        "clip": [frames, height, width],
        "dtype": arguments.dtype,
        "frames_per_s": round(frames / float(np.median(wall)), 2),
        "best_frames_per_s": round(frames / min(wall), 2),
        "cpu_seconds": round(float(np.median(cpu)), 3),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
