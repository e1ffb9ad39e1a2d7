"""What comes with frames tells of them: cross-entropy with the true stream, with that of another clip, and of a model without.

    python benchmarks/streams.py --seeds=3 --steps=300

Small worlds of codes, made on the spot; a transformer of 2 layers learns each, with the stream and without. Nats of a hidden code of the
last frame, all codes of that frame being hidden, on clips that were not seen.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, sharding
from lumos.data import sound
from lumos.sequence.corruption import Corrupted
from lumos.sequence.streams import StreamConfig
from lumos.slots import slot
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import create_state
from lumos.training.step import make_train_step

SIDE, FRAMES, CODES = 3, 3, 4


def places(rng, num):
    """Rows and columns of a block that goes anywhere, int [num, FRAMES, 2]."""
    return rng.integers(0, SIDE, (num, FRAMES, 2))


def blocks(where, codes):
    """Codes [num, FRAMES, SIDE, SIDE]: 0, and `codes` [num] where the block is."""
    n, t = np.indices(where.shape[:2])
    tokens = np.zeros((*where.shape[:2], SIDE, SIDE), np.int32)
    tokens[n, t, where[..., 0], where[..., 1]] = codes[:, None]
    return tokens


def heard(where):
    """The sound of the blocks as codes of bands, [num, FRAMES, 4]."""
    bands = [
        sound.mel_bands(sound.of_places(x / SIDE, 8000, 10), 8000, fps=10, num_frames=FRAMES + 1, bands=4)[1:]
        for x in where
    ]
    return StreamConfig(name="sound", codes=8, low=-4.0, high=2.0).quantize(np.stack(bands))


def sound_to_video(rng, num):
    where = places(rng, num)
    return blocks(where, rng.integers(1, CODES, num)), heard(where), 9


def video_to_sound(rng, num):
    where = places(rng, num)
    return heard(where)[:, :, None], blocks(where, rng.integers(1, CODES, num)).reshape(num, FRAMES, -1), CODES + 1


def camera(rng, num):
    """A texture that a camera passes over; its steps are numbers in bins."""
    texture = rng.integers(0, CODES, (num, SIDE, SIDE))
    steps = rng.integers(-1, 2, (num, FRAMES, 2)) * (np.arange(FRAMES) > 0)[:, None]
    moved = [[np.roll(x, tuple(step), (0, 1)) for step in np.cumsum(path, 0)] for x, path in zip(texture, steps)]
    return np.array(moved, np.int32), StreamConfig(name="camera", codes=16, low=-2.0, high=2.0).quantize(steps), 17


def structure_to_appearance(rng, num):
    where, codes = places(rng, num), rng.integers(1, CODES, num)
    return blocks(where, codes), blocks(where, np.ones(num, int)).reshape(num, FRAMES, -1), 3


WORLDS = {
    "sound -> video": sound_to_video,
    "video -> sound": video_to_sound,
    "camera": camera,
    "structure -> appearance": structure_to_appearance,
}


def config_of(tokens, streams, seed, steps):
    config = config_loading.default()
    config.data.source, config.data.batch_size, config.seed = "tokens", 32, seed
    config.sequence.grid, config.sequence.text_length, config.sequence.streams = tokens.shape[1:], 1, streams
    model = config.model
    model.num_layers, model.model_dim, model.mlp_dim = 2, 64, 128
    model.num_heads, model.num_kv_heads, model.head_dim = 2, 2, 32
    model.text_vocab, model.visual_vocab, model.scan_layers = 8, 9, False
    config.corruption.frames, config.corruption.cells = slot("independent", clean=0.5), slot("frame")
    config.corruption.level = slot("uniform")
    config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.ema_decay = 5e-3, 20, 0.0
    config.train.num_steps = steps
    return config_loading.parse(config)


def learn(config, rows, rng):
    """Return the parameters after training on rows, and the objective."""
    objective = make_objective(config)
    optimizer, mesh = make_objective_optimizer(objective, config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = create_state(objective.definition, optimizer, mesh, seed=config.seed, ema=False)
        step = make_train_step(objective, optimizer, config, mesh)
        for _ in range(config.train.num_steps):
            chosen = rng.integers(0, len(rows["tokens"]), config.data.batch_size)
            state, _ = step(state, {name: jnp.asarray(x[chosen]) for name, x in rows.items()})
    return objective, state.params


def last_frame(objective, params, rows):
    """Return the nats of a code of the last frame, all of which are hidden; earlier frames are known."""
    tokens = rows["tokens"]
    layout, mask_BTC = objective.layout, np.zeros((len(tokens), FRAMES, tokens[0, 0].size), bool)
    mask_BTC[:, -1] = True
    ratio_BT = jnp.asarray(mask_BTC.mean(-1))
    drawn = Corrupted(jnp.asarray(mask_BTC), ratio_BT, jnp.ones(ratio_BT.shape, bool))

    @jax.jit
    def nll(params, rows):
        run = objective._forward(layout, objective.definition, params, rows, drawn, None, jax.random.key(0))
        return objective._cross_entropy(
            layout, run, jnp.asarray(mask_BTC.reshape(len(tokens), -1), jnp.float32)
        ).nll.sum()

    return float(nll(params, rows)) / mask_BTC.sum()


def rows_of(made):
    tokens, stream, _ = made
    num = len(tokens)
    text = {"text": np.full((num, 1), 4, np.int32), "text_length": np.ones(num, np.int32)}
    return {"tokens": tokens.astype(np.int32), "stream_0": stream.astype(np.int32)} | text


def measure(world, seed, steps):
    """Return nats with the true stream, that of another clip, and without."""
    rng = np.random.default_rng(seed)
    made = world(rng, 1024)
    rows, test = rows_of(made), rows_of(world(rng, 128))
    streams = ((made[2], made[1].shape[2]),)
    found = learn(config_of(made[0], streams, seed, steps), rows, np.random.default_rng(seed))
    shuffled = test | {"stream_0": np.roll(test["stream_0"], 1, axis=0)}
    without = learn(
        config_of(made[0], (), seed, steps),
        {name: x for name, x in rows.items() if name != "stream_0"},
        np.random.default_rng(seed),
    )
    return last_frame(*found, test), last_frame(*found, shuffled), last_frame(*without, test)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    options = parser.parse_args()
    print("| world | true | of another clip | none |\n|---|---|---|---|")
    for name in options.worlds.split(","):
        values = np.array([measure(WORLDS[name], seed, options.steps) for seed in range(options.seeds)])
        print(
            f"| {name} | " + " | ".join(f"{m:.3f} +- {s:.3f}" for m, s in zip(values.mean(0), values.std(0))) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
