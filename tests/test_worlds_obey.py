"""A world with exact rules: a texture of codes that an action scrolls to the left or to the right. What is learnt of it is played."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tiny
import untrained
from tokens import write_tokens

from lumos.sequence.streams import StreamConfig
from lumos.slots import slot
from lumos.training.optimizer import make_optimizer
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import Generator
from lumos.worlds.world import World

NAMES, SIDE, FRAMES, CODES, STEPS = ("none", "left", "right"), 6, 6, 16, 200
MOVES = np.array([0, -1, 1, 0])  # of the texture, in cells; the last action is that of the first frame: none


def scrolled(rng, num):
    """Return codes [N, T, H, W] of textures that scroll, and the actions [N, T] that led to their frames."""
    led = np.concatenate([np.full((num, 1), 3), rng.integers(3, size=(num, FRAMES - 1))], axis=1)
    textures, first = rng.integers(CODES, size=(num, SIDE, 4 * SIDE)), 2 * SIDE - np.cumsum(MOVES[led], axis=1)
    codes = [[texture[:, x : x + SIDE] for x in row] for texture, row in zip(textures, first)]
    return np.array(codes, np.int32), led.astype(np.int32)


def followed(before, after, action):
    """Return the share of cells that an action moved as it should, of those that were to be seen before."""
    kept = slice(max(MOVES[action], 0), SIDE + min(MOVES[action], 0))
    return (np.roll(before, MOVES[action], axis=1)[:, kept] == after[:, kept]).mean()


@pytest.mark.slow
@pytest.mark.parametrize("injection", ["adaln", "token"])
def test_the_texture_goes_where_the_key_says(tmp_path, injection):
    """After 200 steps, in sessions twice as long as the clips."""
    folder = write_tokens(tmp_path / "tokens", num=8, streams=((4, 1),), grid=(FRAMES, SIDE, SIDE))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["streams"] = [dataclasses.asdict(StreamConfig(codes=3, names=NAMES)) | {"tokens": 1}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    changes = dict(
        data__path=str(folder), data__batch_size=16, sequence__grid=(FRAMES, SIDE, SIDE), sequence__streams=((4, 1),), sequence__copies=2,
        sequence__text_length=6, sequence__attention=slot("window", width=3), model__streams=slot(injection), model__num_layers=3,
        model__model_dim=64, model__mlp_dim=192, model__num_kv_heads=2, model__init_std=0.02, model__first_frame=True,
        corruption__frames=slot("independent"), corruption__level=slot("uniform"), corruption__cells=slot("frame"), optimizer__name="muon",
        optimizer__learning_rate=5e-3, optimizer__warmup_steps=20, generate__steps=4, generate__sampler__temperature=0.0,
    )  # fmt: skip
    with untrained.make(1, **changes) as made:
        objective, rng = TransformerObjective(made.config), np.random.default_rng(0)
        optimizer = make_optimizer(made.config.optimizer, STEPS)

        @jax.jit
        def step(params, state, batch, key):
            def mean(params):
                loss = objective.loss(params, batch, key)
                return loss.sum / loss.weight

            updates, state = optimizer.update(jax.grad(mean)(params), state, params)
            return optax.apply_updates(params, updates), state

        params = objective.definition.init(jax.random.key(0))
        state = optimizer.init(params)
        words = {name: x for name, x in tiny.token_batch(made.config).items() if name != "tokens"}
        for number in range(STEPS):
            codes, led = scrolled(rng, len(words["text"]))
            params, state = step(
                params, state, words | {"tokens": codes, "stream_0": led[..., None]}, jax.random.key(number)
            )

        world = World(Generator(made.config, objective.definition, params, STEPS), 1)
        codes, _ = scrolled(rng, 4)
        clips = [dataclasses.replace(world.starts.clip(i), codes=codes[i]) for i in range(4)]
        world.starts.clip = clips.__getitem__
        right = []
        for seed in range(4):
            world.reset(0, seed=seed)
            shown = codes[seed, 0]
            for number, action in enumerate(rng.integers(3, size=2 * FRAMES), 1):
                world.step({0: int(action)})
                before, shown = shown, np.asarray(world.live(0).session.codes(number))[0]
                right.append(followed(before, shown, action))
    assert np.mean(right) > 0.95
