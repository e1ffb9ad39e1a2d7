"""Training and guided generation of Lumos-1 with 9.7 and 48.8 M parameters in float32, batch 1: the sizes of the published comparison.

    python benchmarks/lumos1_cpu.py                  # everything, as JSON
    python benchmarks/lumos1_cpu.py --only=train_493 --rounds=3
    python benchmarks/lumos1_cpu.py --beside=official.json      # {"train_493": tokens/s, ...} of other code, measured on this machine just now

Hidden 256, 6 layers, 4 heads, 2 kv heads, mlp 704, vocabulary 10,240 (official special ids, 1,024 visual codes), random
weights; the larger one has 512, 13, 8, 4 and 1,408 (`train_48m`, at 493 tokens). Training is one step of `lumos train` (tube masking, forward, backward, clipping, AdamW) at 493 tokens (6 frames of
8x8) and 1,969 tokens (7 frames of 16x16); tokens/s count the whole sequence. Generation is `Lumos1.generate` with 32 text
tokens, guidance 5, history 0.7, 8 latent frames of 8x8 and of 16x16 at 16 steps; tokens/s count visual tokens. With
JAX_NUM_CPU_DEVICES=2 each of two CPU devices computes one branch of guidance. Compilation is not counted. Run it on an idle
machine. Figures of other code age with the machine, so the file holds none; measure both in turns.
"""

from functools import partial

import compared
import jax
import numpy as np
from compared import measure

from lumos import config_loading, sharding
from lumos.interop import lumos1, lumos1_config
from lumos.layouts import make_layout
from lumos.runtime.huge_pages import use_huge_pages
from lumos.slots import slot
from lumos.training.optimizer import make_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step
from lumos.training.transformer_objective import TransformerObjective

VISUAL_START, CODES = 9216, 1024


def make_config(grid, scan_layers, is_large=False):
    """Training scans the layers, and keeps what the backward pass would multiply again; generation unrolls them."""
    config = config_loading.default()
    if is_large:
        config.model.model_dim, config.model.num_layers, config.model.mlp_dim = 512, 13, 1408
        config.model.num_heads, config.model.num_kv_heads = 8, 4
    config.model.text_vocab, config.model.visual_vocab = VISUAL_START, CODES
    config.model.scan_layers = scan_layers
    config.model.remat = "save:query,key,value,attention,gate,up"
    config.sequence.layout = slot("lumos1", visual_start=VISUAL_START)
    config.sequence.grid, config.sequence.text_length = grid, 31
    config.data.batch_size = 1
    config.optimizer.clip_norm, config.optimizer.ema_decay = 4.0, 0.0
    return config_loading.parse(config)


def train(grid, rounds, is_large=False):
    config = make_config(grid, True, is_large)
    objective, mesh = TransformerObjective(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
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


def generate(grid, rounds):
    config = make_config(grid, False)
    vocabulary = make_layout(config).vocabulary
    official = lumos1_config.official_config(config.model, vocabulary)
    spec = lumos1.Spec(config.model, vocabulary, config.sequence.layout.size_unit, official, {}, ())
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=-1, fsdp=1))
    params = jax.device_put(spec.definition.init(jax.random.key(0)), sharding.replicated(mesh))
    model = lumos1.Lumos1(params, spec)
    prompt = [0, *np.random.default_rng(0).integers(9100, VISUAL_START, 30).tolist(), vocabulary.separator]

    def run():
        model.generate(prompt, size=grid[1:], num_frames=grid[0], steps=16, guidance=5.0)

    with jax.set_mesh(mesh):
        return measure(run, int(np.prod(grid)), rounds)


WORK = {
    "train_493": (train, (6, 8, 8), 10),
    "train_1969": (train, (7, 16, 16), 5),
    "train_48m": (partial(train, is_large=True), (6, 8, 8), 5),
    "generate_8x8": (generate, (8, 8, 8), 3),
    "generate_16x16": (generate, (8, 16, 16), 2),
}


def main():
    use_huge_pages()
    arguments = compared.parser(WORK).parse_args()
    of = lambda run, grid, rounds: partial(run, grid, arguments.rounds or rounds)
    compared.report(arguments, {name: of(*work) for name, work in WORK.items()})


if __name__ == "__main__":
    main()
