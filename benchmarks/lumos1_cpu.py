"""Training and guided generation of a 9.7 M-parameter Lumos-1 in float32, batch 1: the sizes of the published comparison.

    python benchmarks/lumos1_cpu.py                  # everything, as JSON
    python benchmarks/lumos1_cpu.py --only=train_493 --rounds=3
    python benchmarks/lumos1_cpu.py --beside=official.json      # {"train_493": tokens/s, ...} of other code, measured on this machine just now

Hidden 256, 6 layers, 4 heads, 2 kv heads, mlp 704, vocabulary 10,240 (official special ids, 1,024 visual codes), random
weights. Training is one step of `lumos train` (tube masking, forward, backward, clipping, AdamW) at 493 tokens (6 frames of
8x8) and 1,969 tokens (7 frames of 16x16); tokens/s count the whole sequence. Generation is `Lumos1.generate` with 32 text
tokens, guidance 5, history 0.7, 8 latent frames of 8x8 and of 16x16 at 16 steps; tokens/s count visual tokens. Compilation is
not counted. Run it on an idle machine. Figures of other code age with the machine, so the file holds none; measure both in turns.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

from lumos import config_loading, sharding
from lumos.evaluation.evaluate import versions
from lumos.interop import lumos1, lumos1_config
from lumos.layouts import make_layout
from lumos.runtime.huge_pages import use_huge_pages
from lumos.slots import slot
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

VISUAL_START, CODES = 9216, 1024


def make_config(grid, scan_layers):
    config = config_loading.default()
    config.model.text_vocab, config.model.visual_vocab = VISUAL_START, CODES
    config.model.scan_layers = scan_layers
    config.sequence.layout = slot("lumos1", visual_start=VISUAL_START)
    config.sequence.grid, config.sequence.text_length = grid, 31
    config.data.batch_size = 1
    config.optimizer.clip_norm, config.optimizer.ema_decay = 4.0, 0.0
    return config_loading.parse(config)


def train(grid, rounds, scan_layers):
    config = make_config(grid, scan_layers)
    objective, mesh = TransformerObjective(config), sharding.make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, CODES, (1, *grid)).astype(np.int32),
        "text": rng.integers(9100, VISUAL_START, (1, 31)).astype(np.int32),
        "text_length": np.array([31], np.int32),
    }
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=0, ema=False)
        step, batch = make_train_step(objective, optimizer, config, mesh), sharding.put_batch(mesh, batch)

        def run():
            nonlocal state
            state, metrics = step(state, batch)
            metrics["loss"].block_until_ready()

        return measure(run, objective.layout.length, rounds)


def generate(grid, rounds, scan_layers):
    config = make_config(grid, scan_layers)
    vocabulary = make_layout(config).vocabulary
    official = lumos1_config.official_config(config.model, vocabulary)
    spec = lumos1.Spec(config.model, vocabulary, config.sequence.layout.size_unit, official, {}, ())
    model = lumos1.Lumos1(spec.definition.init(jax.random.key(0)), spec)
    prompt = [0, *np.random.default_rng(0).integers(9100, VISUAL_START, 30).tolist(), vocabulary.separator]

    def run():
        model.generate(prompt, size=grid[1:], num_frames=grid[0], steps=16, guidance=5.0)

    return measure(run, int(np.prod(grid)), rounds)


def measure(run, num_tokens, rounds):
    start = time.perf_counter()
    run()
    compile_seconds = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "tokens_per_s": round(num_tokens / float(np.median(wall)), 1),
        "best_tokens_per_s": round(num_tokens / min(wall), 1),
        "seconds": round(float(np.median(wall)), 4),
        "cpu_seconds": round(float(np.median(cpu)), 4),
        "first_call_seconds": round(compile_seconds, 1),
    }


WORK = {
    "train_493": (train, (6, 8, 8), 10),
    "train_1969": (train, (7, 16, 16), 5),
    "generate_8x8": (generate, (8, 8, 8), 3),
    "generate_16x16": (generate, (8, 16, 16), 2),
}


def main():
    use_huge_pages()
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=WORK, action="append")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--scan_layers", type=int, default=0, help="1 compiles one layer and loops over it")
    parser.add_argument("--beside", type=Path, help="JSON file with the tokens/s of other code by the same names")
    arguments = parser.parse_args()
    others = json.loads(arguments.beside.read_text()) if arguments.beside else {}
    result = {"versions": versions()}
    for name in arguments.only or WORK:
        run, grid, rounds = WORK[name]
        result[name] = run(grid, arguments.rounds or rounds, bool(arguments.scan_layers))
        if name in others:
            result[name] |= {"beside": others[name], "ratio": round(result[name]["tokens_per_s"] / others[name], 2)}
        print(json.dumps({name: result[name]}), flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
