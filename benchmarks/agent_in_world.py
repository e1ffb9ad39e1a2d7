"""An agent that learns inside a model alone, and is scored in the real game: "catch", a game of a few lines with exact rules.

    python benchmarks/agent_in_world.py --workdir=catch [--seeds=3] [--updates=40]

A ball falls through six columns, a cell a frame; a paddle at the bottom goes to the left, stays, or goes to the right. A ball that the
paddle is under is worth 1, any other -1. Random play is recorded; a tokenizer, a world and a network of rewards learn from the recordings.
A small policy learns by PPO in `lumos.make_env`, and plays the real game. Beside it: random play, and the same policy after as many
steps in the real game. Prints one line of JSON.
"""

import argparse
import json
import time
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
GROUND = (20, 20, 50)  # colour
CLIPS, FRAMES = 256, 33
EPOCHS, PARTS, CLIP = (
    4,
    4,
    0.2,
)  # of PPO: how often an update goes through its steps, in how many parts, and how far it may go
ENVS, HORIZON = 64, 12  # games beside each other, and frames of each that an update learns from


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
        frames = np.full((self.num, ROWS * CELL, COLUMNS * CELL, 3), GROUND, np.uint8)
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
    return ((parts - GROUND) / 127.5).reshape(len(frames), -1).astype(np.float32)


def logits(params, x_NI):
    return jnp.tanh(x_NI @ params["in"] + params["shift"]) @ params["out"]


draw = jax.jit(lambda params, x_NI, key: jax.random.categorical(key, logits(params, x_NI)))


class Agent:
    """A policy of one hidden layer, with a value beside it; learns by PPO."""

    def __init__(self, seed: int, hidden: int = 128):
        size, keys = ROWS * COLUMNS * 12, jax.random.split(jax.random.key(seed), 3)
        self.key, self.optimizer, self.rng = keys[0], optax.adam(2e-3), np.random.default_rng(seed)
        self.params = {
            "in": jax.random.normal(keys[1], (size, hidden)) / np.sqrt(hidden),
            "shift": jnp.zeros(hidden),
            "out": 0.01 * jax.random.normal(keys[2], (hidden, len(ACTIONS))),
            "value": jnp.zeros(hidden),
        }
        self.state = self.optimizer.init(self.params)

        @jax.jit
        def learn(params, state, x_NI, actions_N, before_N, returns_N):
            def loss(params):
                log_p = jax.nn.log_softmax(logits(params, x_NI))
                taken = jnp.take_along_axis(log_p, actions_N[:, None], axis=1)[:, 0]
                value_N = jnp.tanh(x_NI @ params["in"] + params["shift"]) @ params["value"]
                gain_N, ratio_N = returns_N - jax.lax.stop_gradient(value_N), jnp.exp(taken - before_N)
                policy = jnp.minimum(gain_N * ratio_N, gain_N * jnp.clip(ratio_N, 1 - CLIP, 1 + CLIP))
                return ((value_N - returns_N) ** 2 / 2 - policy - 0.01 * -(jnp.exp(log_p) * log_p).sum(1)).mean()

            updates, state = self.optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        self._learn = learn
        self._log_p = jax.jit(lambda params, x_NI: jax.nn.log_softmax(logits(params, x_NI)))

    def act(self, frames):
        self.key, key = jax.random.split(self.key)
        return np.asarray(draw(self.params, seen(frames), key))

    def learn(self, game, frames):
        """Go on for `HORIZON` frames, and learn from them; return the last ones. A ball's reward counts for what was done under it."""
        steps = []
        for _ in range(HORIZON):
            actions = self.act(frames)
            after, rewards, done = game.step(actions)
            steps.append((seen(frames), actions, rewards, done))
            frames = after
        inputs, taken, rewards, done = (np.stack(column) for column in zip(*steps))
        returns_TN = rewards.astype(np.float32)
        for t in reversed(range(HORIZON - 1)):
            returns_TN[t] += np.where(done[t + 1], 0.0, returns_TN[t + 1])
        x_NI, taken_N = inputs.reshape(-1, inputs.shape[-1]), taken.reshape(-1)
        before_N = np.asarray(self._log_p(self.params, x_NI))[np.arange(len(x_NI)), taken_N]
        for _ in range(EPOCHS):
            for part in np.split(self.rng.permutation(len(x_NI)), PARTS):
                batch = (x[part] for x in (x_NI, taken_N, before_N, returns_TN.reshape(-1)))
                self.params, self.state = self._learn(self.params, self.state, *batch)
        return frames


class Inside:
    """The game as the model has it: frames of a world that goes on without an end, rewards and ends as they are read off them."""

    def __init__(self, workdir: Path):
        self.env, self.read = (
            lumos.make_env(workdir / "transformer", ENVS),
            Rewards.load(workdir / "clips" / "rewards.npz"),
        )

    def reset(self, seed: int):
        self.before, _ = self.env.reset(seed=seed)
        return self.before

    def step(self, actions):
        after = self.env.step(actions)[0]
        (rewards, done), self.before = self.read(self.before, actions, after), after
        return after, rewards, done


def read(frames):
    """Return the column of the paddle, and column and row of the ball, as they are to be seen, [N] each."""
    red = frames[:, -3:, :, 0].astype(int) - frames[:, -3:, :, 2]
    paddle = red.reshape(len(frames), 3, COLUMNS, CELL).sum((1, 3)).argmax(1)
    blue = frames[..., 2].reshape(len(frames), ROWS, CELL, COLUMNS, CELL)[:, :, :5].astype(int).sum((2, 4))
    ball = blue.reshape(len(frames), -1).argmax(1)
    return paddle, ball % COLUMNS, ball // COLUMNS


def rules_kept(model: Inside, num: int = 30) -> dict[str, float]:
    """Return the share of frames made under random actions whose paddle, or falling ball, is where the rules of the game say."""
    rng, shares = np.random.default_rng(0), {"paddle": [], "ball": []}
    frames = model.reset(5000)
    for _ in range(num):
        paddle, column, row = read(frames)
        actions = rng.integers(len(ACTIONS), size=ENVS)
        frames, _, _ = model.step(actions)
        found, column_now, row_now = read(frames)
        falls = row < ROWS - 1
        shares["paddle"].append((found == np.clip(paddle + MOVES[actions], 0, COLUMNS - 1)).mean())
        shares["ball"].append(((column_now == column) & (row_now == row + 1))[falls].mean())
    return {name: round(float(np.mean(found)), 4) for name, found in shares.items()}


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
    parser.add_argument("--updates", type=int, default=40)
    values = parser.parse_args()
    workdir = Path(values.workdir).absolute()
    make_world(workdir)
    model = Inside(workdir)
    rules = rules_kept(model)
    print(rules, flush=True)
    scores = {"random": [], "in the model": [], "in the game": []}
    for seed in range(values.seeds):
        began, inside, outside, rng = time.perf_counter(), Agent(seed), Agent(seed), np.random.default_rng(seed)
        game = Catch(ENVS, seed, anywhere=True)
        of_model, of_game = model.reset(seed), game.frames()
        for _ in range(values.updates):
            of_model, of_game = inside.learn(model, of_model), outside.learn(game, of_game)
        scores["in the model"].append(score(inside.act, 1000 + seed))
        scores["in the game"].append(score(outside.act, 1000 + seed))
        scores["random"].append(
            score(lambda frames, rng=rng: rng.integers(len(ACTIONS), size=len(frames)), 1000 + seed)
        )
        print({name: found[-1] for name, found in scores.items()}, f"{time.perf_counter() - began:.0f} s", flush=True)
    values_S = {name: np.array(found) for name, found in scores.items()}
    gain = values_S["in the model"] - values_S["random"]
    facts = {name: [round(float(x.mean()), 3), round(float(x.std(ddof=1)), 3)] for name, x in values_S.items()}
    deviations = gain.mean() / max(gain.std(ddof=1) / np.sqrt(len(gain)), 1e-9)
    print(
        json.dumps(
            {
                "rules_kept": rules,
                "mean_and_deviation": facts,
                "gain": gain.mean(),
                "deviations": deviations,
                "versions": versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
