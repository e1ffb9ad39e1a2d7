"""How much faster is decoding over the KV cache than recomputing everything? Same weights, same tokens.

    python benchmarks/cached_generation.py

8 latent frames of 8x8 codes at 16 steps, guidance on, one clip, random weights: both programs are jitted, run alternately,
and must give identical tokens. Prints seconds and CPU seconds of each (best of the rounds) and their ratio.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config as config_lib
from lumos.evaluation.evaluate import versions
from lumos.generation.decode import Decoder
from lumos.training.transformer_task import TransformerTask

ROUNDS = 3


def main():
    config = config_lib.default()
    config.model.text_vocab, config.model.visual_vocab = 512, 1000
    config.model.init_std = 0.05
    config.sequence.grid, config.sequence.text_length = (8, 8, 8), 16
    config = config_lib.parse(config)
    task = TransformerTask(config)
    params = task.definition.init(jax.random.key(0))
    text = np.random.default_rng(0).integers(4, 512, (1, 16)).astype(np.int32)
    empty = jnp.zeros((1, 8, 8, 8), jnp.int32)
    programs = {}
    for name, use_cache in (("cached", True), ("recomputed", False)):
        decoder = Decoder(task.definition, task.layout, config.generate, config.loss.chunk, use_cache)
        programs[name] = jax.jit(
            lambda params, key, decoder=decoder: decoder(params, text, jnp.array([16]), empty, key, 0)
        )
    key, tokens, seconds, cpu = jax.random.key(1), {}, {}, {}
    for name, program in programs.items():
        tokens[name] = np.asarray(program(params, key))  # compiles
    for _ in range(ROUNDS):
        for name, program in programs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            program(params, key).block_until_ready()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            cpu.setdefault(name, []).append(time.process_time() - start_cpu)
    result = {
        "parameters": task.definition.num_params,
        "same_tokens": bool((tokens["cached"] == tokens["recomputed"]).all()),
        "seconds": {name: round(min(values), 3) for name, values in seconds.items()},
        "cpu_seconds": {name: round(min(values), 3) for name, values in cpu.items()},
        "speedup": round(min(seconds["recomputed"]) / min(seconds["cached"]), 2),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
