"""What comes with frames tells of them: cross-entropy with the true condition, with that of another clip, and without one.

    python benchmarks/streams.py --seeds=3 --steps=300

Small worlds of codes, made on the spot; a transformer of 2 layers learns each. Nats of a hidden code of the last frame, all that is asked
for being hidden, on clips that were not seen. A condition is a stream beside the frames, a word, or cells of the video itself that are
kept. Without: of a model that was trained without the stream or the word; with the cells hidden.
"""

import argparse
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading
from lumos.data import sound
from lumos.findings.training import Training
from lumos.sequence.corruption import Corrupted
from lumos.sequence.streams import StreamConfig
from lumos.slots import slot

SIDE, FRAMES, CODES = 3, 3, 4
WORD = 4  # id of the first word; those before it are special


class Made(NamedTuple):
    """Clips of a world: codes [N, T, H, W], and one of three conditions.

    stream: codes [N, T, tokens], of `codes` codes. word: ids [N]. kept: cells of the video that are the condition, bool [T, H, W]; then
    `asked` are those that are predicted, by default the last frame's, and `hidden` others that nobody knows.
    """

    tokens: np.ndarray
    stream: np.ndarray | None = None
    codes: int = 0
    word: np.ndarray | None = None
    kept: np.ndarray | None = None
    asked: np.ndarray | None = None
    hidden: np.ndarray | None = None


def places(rng, num):
    """Rows and columns of a block that goes anywhere, int [num, FRAMES, 2]."""
    return rng.integers(0, SIDE, (num, FRAMES, 2))


def blocks(where, codes):
    """Codes [num, FRAMES, SIDE, SIDE]: 0, and `codes` [num] where the block is."""
    n, t = np.indices(where.shape[:2])
    tokens = np.zeros((*where.shape[:2], SIDE, SIDE), np.int32)
    tokens[n, t, where[..., 0], where[..., 1]] = codes[:, None]
    return tokens


def colours(rng, num):
    return rng.integers(1, CODES, num)


def cells(*where, shape=(FRAMES, SIDE, SIDE)):
    """A mask of cells, bool `shape`."""
    mask = np.zeros(shape, bool)
    mask[where] = True
    return mask


def heard(where):
    """The sound of the blocks as codes of bands, [num, FRAMES, 4]."""
    bands = [
        sound.mel_bands(sound.of_places(x / SIDE, 8000, 10), 8000, fps=10, num_frames=FRAMES + 1, bands=4)[1:]
        for x in where
    ]
    return StreamConfig(name="sound", codes=8, low=-4.0, high=2.0).quantize(np.stack(bands))


def sound_to_video(rng, num):
    where = places(rng, num)
    return Made(blocks(where, colours(rng, num)), heard(where), 9)


def video_to_sound(rng, num):
    where = places(rng, num)
    return Made(heard(where)[:, :, None], blocks(where, colours(rng, num)).reshape(num, FRAMES, -1), CODES + 1)


def passed(rng, num, steps):
    """A texture that a camera passes over by `steps` [num, FRAMES, 2]."""
    texture = rng.integers(0, CODES, (num, SIDE, SIDE))
    moved = [[np.roll(x, tuple(step), (0, 1)) for step in np.cumsum(path, 0)] for x, path in zip(texture, steps)]
    return np.array(moved, np.int32)


def camera(rng, num):
    """The steps of the camera are numbers in bins."""
    steps = rng.integers(-1, 2, (num, FRAMES, 2)) * (np.arange(FRAMES) > 0)[:, None]
    stream = StreamConfig(name="camera", codes=16, low=-2.0, high=2.0).quantize(steps)
    return Made(passed(rng, num, steps), stream, 17)


def camera_words(rng, num):
    """One word says where the camera goes in the whole clip."""
    word = rng.integers(0, 4, num)
    step = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])[word]
    steps = step[:, None] * (np.arange(FRAMES) == FRAMES - 1)[:, None]
    return Made(passed(rng, num, steps), word=WORD + word)


def pose(rng, num):
    """A block whose place is told in numbers, in bins."""
    where = places(rng, num)
    stream = StreamConfig(name="pose", codes=8, low=0.0, high=float(SIDE - 1)).quantize(where)
    return Made(blocks(where, colours(rng, num)), stream, 9)


def music_to_body(rng, num):
    """Three parts of a body, each with three codes of its own; which, a beat tells for each of them."""
    beats, parts = rng.integers(0, 8, (num, FRAMES)), np.arange(3)
    dance = np.random.default_rng(0).integers(0, 3, (8, 3))
    return Made((3 * parts + dance[beats])[:, :, None], beats[..., None], 9)


def structure_to_appearance(rng, num):
    where, codes = places(rng, num), colours(rng, num)
    return Made(blocks(where, codes), blocks(where, np.ones(num, int)).reshape(num, FRAMES, -1), 3)


def depth_to_picture(rng, num):
    """Rows of a picture above rows of its depth, in one canvas."""
    where, shape = places(rng, num), (FRAMES, 2 * SIDE, SIDE)
    depth = CODES + blocks(where, np.ones(num, int))
    canvas = np.concatenate([blocks(where, colours(rng, num)), depth], axis=2)
    last = cells(-1, shape=shape)
    below = cells(-1, slice(SIDE, None), shape=shape)
    return Made(canvas, kept=below, asked=last & ~below)


def warped_to_rest(rng, num):
    """Every frame has columns of codes of its own; its first row is what a warp has kept."""
    columns = rng.integers(0, CODES, (num, FRAMES, 1, SIDE)).repeat(SIDE, axis=2)
    return Made(columns, kept=cells(-1, 0), asked=cells(-1, slice(1, None)))


def exemplar_to_video(rng, num):
    """The first frame is another picture of what the clip shows."""
    return Made(blocks(places(rng, num), colours(rng, num)), kept=cells(0), asked=cells(-1), hidden=cells(1))


# With each world how its stream reaches the model (`model.streams`): tokens that stand where their cells do are seen there; what few
# tokens say to all cells is learnt sooner as a scale and a shift of every layer.
WORLDS = {
    "sound -> video": (sound_to_video, "adaln"),
    "video -> sound": (video_to_sound, "token"),
    "music -> body parts": (music_to_body, "adaln"),
    "camera": (camera, "adaln"),
    "camera words": (camera_words, ""),
    "pose": (pose, "adaln"),
    "structure -> appearance": (structure_to_appearance, "token"),
    "depth rows -> picture rows": (depth_to_picture, ""),
    "warped cells -> the rest": (warped_to_rest, ""),
    "exemplar -> video": (exemplar_to_video, ""),
}


def config_of(made, injection, steps):
    config = config_loading.default()
    config.data.source, config.data.batch_size = "tokens", 32
    config.sequence.grid, config.sequence.text_length = made.tokens.shape[1:], 1
    model = config.model
    model.num_layers, model.model_dim, model.mlp_dim = 2, 64, 128
    model.num_heads, model.num_kv_heads, model.head_dim = 2, 2, 32
    model.text_vocab, model.visual_vocab, model.scan_layers = 8, 9, False
    if made.stream is not None:
        config.sequence.streams = ((made.codes, made.stream.shape[2]),)
        model.streams = slot(injection)
    config.corruption.frames, config.corruption.cells = slot("independent", clean=0.5), slot("frame")
    config.corruption.level = slot("uniform")
    config.optimizer.name, config.optimizer.learning_rate = "muon", 5e-3
    config.optimizer.warmup_steps, config.optimizer.ema_decay = 20, 0.0
    config.train.num_steps = steps
    return config_loading.parse(config)


@functools.cache
def training_of(name, steps, with_condition=True):
    """Return what trains a model of a world; all seeds share its program."""
    (world, injection), rng = WORLDS[name], np.random.default_rng(0)
    made = world(rng, 1)
    return Training(config_of(made if with_condition else without(made), injection, steps))


def learn(training, rows, seed):
    """Return the objective, and the parameters after training on rows."""
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(0, len(rows["tokens"]), training.config.data.batch_size) for _ in itertools.count())
    batches = ({name: x[which] for name, x in rows.items()} for which in chosen)
    return training.objective, training.run(seed, batches=batches)[0]


def nats(objective, params, rows, asked, hidden=False):
    """Return the nats of a code that is asked for. asked, hidden: bool [T, H, W]; both are masked, the other cells are known."""
    spread = lambda mask: np.broadcast_to(mask.reshape(len(mask), -1), (len(rows["tokens"]), len(mask), mask[0].size))
    return float(summed(objective, params, rows, spread(asked | hidden), spread(asked))) / spread(asked).sum()


@functools.partial(jax.jit, static_argnums=0)
def summed(objective, params, rows, mask_BTC, asked_BTC):
    ratio_BT = mask_BTC.mean(-1)
    drawn = Corrupted(mask_BTC, ratio_BT, jnp.ones(ratio_BT.shape, bool))
    run = objective._forward(objective.layout, objective.definition, params, rows, drawn, None, jax.random.key(0))
    weights_BJ = asked_BTC.reshape(len(asked_BTC), -1).astype(jnp.float32)
    return objective._cross_entropy(objective.layout, run, weights_BJ).nll.sum()


def without(made):
    return made._replace(stream=None, word=None)


def rows_of(made):
    num = len(made.tokens)
    word = np.full(num, WORD) if made.word is None else made.word
    rows = {"tokens": made.tokens, "text": word[:, None], "text_length": np.ones(num)}
    if made.stream is not None:
        rows["stream_0"] = made.stream
    return {name: x.astype(np.int32) for name, x in rows.items()}


def measure(name, seed, steps):
    """Return nats with the true condition, that of another clip, and without."""
    world, rng = WORLDS[name][0], np.random.default_rng(seed)
    made, test = world(rng, 1024), world(rng, 128)
    rows, asked = rows_of(test), test.asked if test.asked is not None else cells(-1, shape=test.tokens.shape[1:])
    hidden = test.hidden if test.hidden is not None else np.zeros_like(asked)
    model = learn(training_of(name, steps), rows_of(made), seed)
    true = nats(*model, rows, asked, hidden)
    rolled = lambda x: np.roll(x, 1, axis=0)
    if test.kept is not None:
        other = rows | {"tokens": np.where(test.kept, rolled(rows["tokens"]), rows["tokens"])}
        return true, nats(*model, other, asked, hidden), nats(*model, rows, asked, hidden | test.kept)
    condition = "text" if test.stream is None else "stream_0"
    other = rows | {condition: rolled(rows[condition])}
    blind = learn(training_of(name, steps, with_condition=False), rows_of(without(made)), seed)
    return true, nats(*model, other, asked), nats(*blind, rows_of(without(test)), asked)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    options = parser.parse_args()
    print("| condition | true | of another clip | none |\n|---|---|---|---|")
    for name in options.worlds.split(","):
        values = np.array([measure(name, seed, options.steps) for seed in range(options.seeds)])
        print(
            f"| {name} | " + " | ".join(f"{m:.3f} +- {s:.3f}" for m, s in zip(values.mean(0), values.std(0))) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
