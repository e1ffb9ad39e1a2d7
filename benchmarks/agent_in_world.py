"""An agent that learns inside a model alone, and is scored in the real game: "catch", a game of a few lines with exact rules.

    python benchmarks/agent_in_world.py --workdir=catch [--seeds=3] [--updates=150]

A ball falls through six columns, a cell a frame; a paddle at the bottom goes to the left, stays, or goes to the right. A ball that the
paddle is under is worth 1, any other -1. Random play is recorded; a tokenizer, a world and a network of rewards learn from the recordings.
A small policy learns by REINFORCE in `lumos.make_env`, and plays the real game. Beside it: random play, and the same policy after as many
steps in the real game. Prints one line of JSON.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lumos
from lumos import config_loading
from lumos.configs.world_vizdoom import sized
from lumos.data.index import index
from lumos.data.video_writer import write_video
from lumos.evaluation.evaluate import versions
from lumos.tokenizers import pretrained
from lumos.tokenizers.tokenize import tokenize
from lumos.training.loop import train
from lumos.worlds.readers import Rewards

ACTIONS, COLUMNS, ROWS, CELL = ("stay", "left", "right"), 6, 6, 8
MOVES = np.array([0, -1, 1])
CLIPS, FRAMES = 256, 33
ENVS, HORIZON = 64, 7  # episodes of an update, and frames of each at most


class Catch:
    """Games in a row, with the interface that the agent needs of an environment."""

    def __init__(self, num: int, seed: int, anywhere: bool = False):
        """anywhere: balls begin in any row, as the clips of recordings do."""
        self.rng, self.num = np.random.default_rng(seed), num
        self.ball, self.paddle = self.rng.integers(COLUMNS, size=(2, num))
        self.row = self.rng.integers(ROWS, size=num) if anywhere else np.zeros(num, int)

    def step(self, actions):
        """Return (frames, rewards, whether an episode ended before this frame)."""
        done = self.row == ROWS - 1
        self.paddle = np.clip(self.paddle + MOVES[actions], 0, COLUMNS - 1)
        self.row = np.where(done, 0, self.row + 1)
        self.ball = np.where(done, self.rng.integers(COLUMNS, size=self.num), self.ball)
        landed = self.row == ROWS - 1
        return self.frames(), np.where(landed, np.where(self.ball == self.paddle, 1.0, -1.0), 0.0), done

    def frames(self):
        """Return uint8 [N, Y, X, 3]."""
        frames = np.full((self.num, ROWS * CELL, COLUMNS * CELL, 3), (20, 20, 50), np.uint8)
        for frame, ball, row, paddle in zip(frames, self.ball, self.row, self.paddle):
            frame[-3:, paddle * CELL : (paddle + 1) * CELL] = (220, 60, 40)
            frame[row * CELL : row * CELL + 5, ball * CELL + 1 : (ball + 1) * CELL - 1] = (240, 240, 240)
        return frames


def record(folder: Path) -> None:
    """Write clips of random play, keys held for a few frames, as `lumos data record` does."""
    rng, game, rows = np.random.default_rng(1), Catch(CLIPS, 0, anywhere=True), []
    actions = np.repeat(rng.integers(len(ACTIONS), size=(CLIPS, FRAMES)), 2, axis=1)[:, :FRAMES]
    steps = [(game.frames(), np.zeros(CLIPS), np.zeros(CLIPS, bool)), *map(game.step, actions.T[1:])]
    video, reward, done = (np.stack(column, axis=1) for column in zip(*steps))
    for i in range(CLIPS):
        split = {6: "validation", 7: "test"}.get(i % 8, "train")
        write_video(folder / f"{i}.mp4", video[i], 8)
        np.savez(folder / f"{i}.npz", action=actions[i], reward=reward[i], done=done[i])
        rows.append({"path": f"{i}.mp4", "caption": "catch", "split": split, "actions": f"{i}.npz:action[0:{FRAMES}]"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learnt = slice(None, CLIPS * 3 // 4)
    Rewards.learn(video[learnt], reward[learnt], done[learnt]).save(folder / "rewards.npz")
    index(folder / "clips.jsonl", folder / "manifest.jsonl", config_loading.parse(config_loading.default()).data)


def config_of(part: str, workdir: Path):
    config = config_loading.default()
    config.task = "transformer" if part == "transformer" else "tokenizer"
    config.name = f"catch {part}"
    config = sized(config, part, "", str(workdir), "", ACTIONS)
    config.tokenizer.channels, config.train.num_samples = 16, 0
    if part == "transformer":
        config.data.buckets, config.data.batch_size = ((5, ROWS, COLUMNS),), 16
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 4, 96, 288
        config.train.num_steps, config.train.eval_every = 700, 700
    else:
        config.data.path = str(workdir / "clips" / "manifest.jsonl")
        config.data.buckets = ((FRAMES if part == "tokens" else 5, ROWS * CELL, COLUMNS * CELL),)
        config.train.num_steps, config.train.eval_every = 400, 400
    return config_loading.parse(config)


def make_world(workdir: Path) -> None:
    """Everything from nothing; what is there already stays."""
    if not (workdir / "clips" / "manifest.jsonl").exists():
        (workdir / "clips").mkdir(parents=True, exist_ok=True)
        record(workdir / "clips")
    train(config_of("tokenizer", workdir), workdir / "tokenizer")
    tokens, tokenizer = config_of("tokens", workdir), pretrained.load(workdir / "tokenizer")
    tokenize(tokens, tokenizer, workdir / "tokens", splits=("train", "validation", "test"))
    train(config_of("transformer", workdir), workdir / "transformer")


def seen(frames):
    """Return what the policy sees of frames, float32 [N, inputs]: the means of parts of 4 x 4 pixels."""
    parts = frames.reshape(len(frames), ROWS * CELL // 4, 4, COLUMNS * CELL // 4, 4, 3).mean((2, 4))
    return (parts.reshape(len(frames), -1) / 127.5 - 1).astype(np.float32)


def logits(params, x_NI):
    return jnp.tanh(x_NI @ params["in"] + params["shift"]) @ params["out"]


draw = jax.jit(lambda params, x_NI, key: jax.random.categorical(key, logits(params, x_NI)))


class Agent:
    """A policy of one hidden layer; learns by REINFORCE, with the mean return of the batch as its baseline."""

    def __init__(self, seed: int, hidden: int = 64):
        size, keys = ROWS * COLUMNS * 12, jax.random.split(jax.random.key(seed), 3)
        self.key, self.optimizer = keys[0], optax.adam(3e-3)
        self.params = {
            "in": jax.random.normal(keys[1], (size, hidden)) / np.sqrt(size),
            "shift": jnp.zeros(hidden),
            "out": 0.01 * jax.random.normal(keys[2], (hidden, len(ACTIONS))),
        }
        self.state = self.optimizer.init(self.params)

        @jax.jit
        def learn(params, state, x_NI, actions_N, gains_N):
            def loss(params):
                log_p = jax.nn.log_softmax(logits(params, x_NI))
                taken = jnp.take_along_axis(log_p, actions_N[:, None], axis=1)[:, 0]
                return -(gains_N * taken).mean() - 0.01 * -(jnp.exp(log_p) * log_p).sum(1).mean()

            updates, state = self.optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        self._learn = learn

    def act(self, frames):
        self.key, key = jax.random.split(self.key)
        return np.asarray(draw(self.params, seen(frames), key))

    def learn(self, first, step):
        """Play `HORIZON` frames from `first` by `step`, actions -> (frames, rewards, done), and learn from the first episode of each."""
        frames, going, inputs, taken, rewards, weights = first, np.ones(len(first), bool), [], [], [], []
        for _ in range(HORIZON):
            actions = self.act(frames)
            after, reward, done = step(actions)
            going = going & ~done
            inputs, taken = [*inputs, seen(frames)], [*taken, actions]
            rewards, weights, frames = [*rewards, reward * going], [*weights, going], after
        returns_TN = np.cumsum(np.stack(rewards)[::-1], axis=0)[::-1]
        gains_TN = (returns_TN - returns_TN.mean(1, keepdims=True)) * np.stack(weights)
        self.params, self.state = self._learn(
            self.params,
            self.state,
            np.concatenate(inputs),
            np.concatenate(taken),
            gains_TN.reshape(-1).astype(np.float32),
        )


def score(act, seed: int, num: int = 500) -> float:
    """Return the mean reward of a ball in the real game."""
    game = Catch(num, seed)
    frames = game.frames()
    for _ in range(ROWS - 1):
        frames, rewards, _ = game.step(act(frames))
    return float(rewards.mean())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=150)
    values = parser.parse_args()
    workdir = Path(values.workdir).absolute()
    make_world(workdir)
    env = lumos.make_env(
        workdir / "transformer", ENVS, reward=Rewards.load(workdir / "clips" / "rewards.npz"), max_steps=HORIZON
    )
    scores = {"random": [], "in the model": [], "in the game": []}
    for seed in range(values.seeds):
        inside, outside = Agent(seed), Agent(seed)
        rng = np.random.default_rng(seed)
        for update in range(values.updates):
            first, _ = env.reset(seed=int(rng.integers(2**30)))
            inside.learn(first, lambda actions: env.step(actions)[:3])
            game = Catch(ENVS, 10_000 * (seed + 1) + update, anywhere=True)
            outside.learn(game.frames(), game.step)
        scores["in the model"].append(score(inside.act, 1000 + seed))
        scores["in the game"].append(score(outside.act, 1000 + seed))
        scores["random"].append(
            score(lambda frames, rng=rng: rng.integers(len(ACTIONS), size=len(frames)), 1000 + seed)
        )
        print({name: found[-1] for name, found in scores.items()}, flush=True)
    values_S = {name: np.array(found) for name, found in scores.items()}
    gain = values_S["in the model"] - values_S["random"]
    facts = {name: [round(float(x.mean()), 3), round(float(x.std(ddof=1)), 3)] for name, x in values_S.items()}
    deviations = gain.mean() / max(gain.std(ddof=1) / np.sqrt(len(gain)), 1e-9)
    print(
        json.dumps({"mean_and_deviation": facts, "gain": gain.mean(), "deviations": deviations, "versions": versions()})
    )


if __name__ == "__main__":
    main()
