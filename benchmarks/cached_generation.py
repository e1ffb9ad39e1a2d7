"""How much faster is decoding over the KV cache than recomputing everything? Same weights, same tokens.

    python benchmarks/cached_generation.py

8 latent frames of 8x8 codes at 16 steps, guidance on, one clip, random weights: both are compiled (recomputing pass by pass, see
tests/recompute.py), run alternately, and must give identical tokens. Prints seconds and CPU seconds of each (best of the rounds) and their ratio.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading
from lumos.evaluation.evaluate import versions
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from recompute import Recompute  # noqa: E402

ROUNDS = 3


def main():
    config = config_loading.default()
    config.model.text_vocab, config.model.visual_vocab = 512, 1000
    config.model.init_std = 0.05
    config.sequence.grid, config.sequence.text_length = (8, 8, 8), 16
    config = config_loading.parse(config)
    objective = TransformerObjective(config)
    params = objective.definition.init(jax.random.key(0))
    text = np.random.default_rng(0).integers(4, 512, (1, 16)).astype(np.int32)
    empty = jnp.zeros((1, 8, 8, 8), jnp.int32)
    engine = make_engine(config, objective.definition)
    programs = {
        "cached": jax.jit(engine.decode, static_argnums=5),
        "recomputed": Recompute(config, objective.definition, chunk=config.loss.chunk),
    }
    inputs = text, jnp.array([16]), empty
    key, tokens, seconds, cpu = jax.random.key(1), {}, {}, {}
    for name, program in programs.items():
        tokens[name] = np.asarray(program(params, *inputs, key, 0))  # compiles
    for _ in range(ROUNDS):
        for name, program in programs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            program(params, *inputs, key, 0).block_until_ready()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            cpu.setdefault(name, []).append(time.process_time() - start_cpu)
    result = {
        "parameters": objective.definition.num_params,
        "same_tokens": bool((tokens["cached"] == tokens["recomputed"]).all()),
        "seconds": {name: round(min(values), 3) for name, values in seconds.items()},
        "cpu_seconds": {name: round(min(values), 3) for name, values in cpu.items()},
        "speedup": round(min(seconds["recomputed"]) / min(seconds["cached"]), 2),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
