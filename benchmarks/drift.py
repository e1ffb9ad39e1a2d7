"""What slows the decay of long videos: remedies on a world whose baseline decays, over three seeds.

    python benchmarks/drift.py --out=drift [--arms="fifo,sink realigned"] [--seeds=3] [--steps=1200] [--frames=60]

The world is made of codes, so no tokenizer blurs what is measured: a block of 2 x 2 cells in the colour of the prompt bounces diagonally,
a cell every second frame, over a background of random codes that never change. The background is in no prompt: it is carried by history
alone, and where the block turns it covers cells for longer than the window. Training clips have 5 latent frames; videos begin with 2 true
ones and go on to 12 times that length. Measured in tenths: background that is still that of the first frames, frames with one whole block
of the right colour, steps of the block that are right.

Arms that differ in generation share a training run. Runs and rows that are there already are kept. Prints a table, and writes rows.jsonl.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from lumos import config_loading
from lumos.checkpoint import Checkpointer
from lumos.data.records import RecordWriter
from lumos.data.text import TextTokenizer
from lumos.evaluation.evaluate import versions
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.slots import slot
from lumos.training.from_config import make_objective
from lumos.training.loop import train
from lumos.videos.generator import make_engine

SIDE, TRAINED, GIVEN, VIDEOS, PARTS = 6, 5, 2, 32, 10
TEXTURES, COLOURS = 16, ("red", "green", "blue", "yellow")
SEEN = TRAINED - 1

# arm: training run, changes in generation.
FIFO = {"cache": slot("fifo", width=SEEN), "positions": slot("relative", horizon=SEEN)}
SINK = {"cache": slot("window", width=SEEN, sink=1)}
ARMS = {
    "fifo": ("clean", FIFO),
    "absolute positions": ("clean", FIFO | {"positions": slot("absolute")}),
    "all history absolute": ("clean", {"cache": slot("window", width=60, sink=0), "positions": slot("absolute")}),
    "sink realigned": ("clean", SINK | {"positions": slot("realigned")}),
    "sink not realigned": ("clean", SINK | {"positions": slot("absolute")}),
    "compression": ("clean", {"cache": slot("compress", width=6, sink=1, recent=2, budget=1), "positions": slot("realigned")}),
    "retrieval": ("clean", {"cache": slot("retrieve", width=16, sink=1, recent=2, most=1), "positions": slot("realigned")}),
    "remasking": ("clean", FIFO | {"sampler": slot("confidence", eta=0.3)}),
    "temperature 0.5": ("clean", FIFO | {"sampler": slot("confidence", temperature=0.5)}),
    "one copy": ("one copy", FIFO),
    "one copy and history mask 0.2": ("one copy", FIFO | {"history_ratio": 0.2}),
    "memory ladder": ("ladder", {"cache": slot("ladder", width=SEEN), "positions": slot("relative", horizon=SEEN)}),
    "random codes": ("random codes", FIFO),
    "bank of errors": ("bank", FIFO),
    "own errors": ("own", FIFO),
    "chained passes": ("chain", FIFO),
    "streaming tuning": ("streaming", FIFO),
    "window of a rollout": ("window", FIFO),
    "random codes and sink": ("random codes", SINK | {"positions": slot("realigned")}),
    "random codes and sink not realigned": ("random codes", SINK | {"positions": slot("absolute")}),
}  # fmt: skip
# These begin with the weights of "one copy". It is their teacher too, which must have learnt the sequences that it judges.
TUNED = ("streaming", "window")


def world(rng, num_frames):
    """Return codes [T, H, W], the background [H, W], the corners of the block [T, 2], and the number of its colour."""
    background = rng.integers(0, TEXTURES, (SIDE, SIDE))
    colour, heading, phase = rng.integers(len(COLOURS)), rng.choice([-1, 1], 2), rng.integers(2)
    corner, codes, corners = rng.integers(0, SIDE - 1, 2), [], []
    for t in range(num_frames):
        frame = background.copy()
        frame[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = TEXTURES + 4 * colour + np.arange(4).reshape(2, 2)
        codes.append(frame)
        corners.append(corner)
        if (t + phase) % 2:
            corner, heading = move(corner, heading)
    return np.stack(codes), background, np.stack(corners), colour


def move(corner, heading):
    heading = np.where((corner + heading < 0) | (corner + heading > SIDE - 2), -heading, heading)
    return corner + heading, heading


def write_tokens(folder):
    """Write a token folder of the world; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, num, seed in (("train", 8192, 1), ("validation", 256, 2)):
        rng = np.random.default_rng(seed)
        with RecordWriter(folder / f"{split}-00000-of-00001.array_record") as writer:
            for i in range(num):
                codes, _, _, colour = world(rng, TRAINED)
                writer.write(
                    {"tokens": codes.astype(np.uint32), "caption": f"a {COLOURS[colour]} block", "id": f"{split}/{i}"}
                )
    facts = {
        "grid": [TRAINED, SIDE, SIDE],
        "codebook_size": TEXTURES + 16,
        "tokenizer": {"fingerprint": "codes of a world"},
    }
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def config_of(run, tokens, steps, seed, runs, changes=None):
    """Return the config of a training run, with changes of `generate` where they are given."""
    config = config_loading.default()
    config.name, config.seed, config.task = f"drift {run}", seed, "transformer"
    config.data.source, config.data.path, config.data.batch_size = "tokens", str(tokens), 16
    config.sequence.grid, config.sequence.text_length = (TRAINED, SIDE, SIDE), 8
    model = config.model
    model.num_layers, model.model_dim, model.mlp_dim, model.num_heads, model.num_kv_heads = 3, 64, 176, 2, 2
    model.head_dim, model.scan_layers, model.remat = 32, False, "none"
    model.text_vocab, model.visual_vocab = TextTokenizer(config.text.model).vocab_size, TEXTURES + 16
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.final_fraction = "muon", 5e-3, 0.02
    config.corruption.frames, config.corruption.cells, config.corruption.level = (
        slot("independent"),
        slot("frame"),
        slot("uniform"),
    )
    config.sequence.copies = 2  # history is clean in training as in generation
    config.train.num_steps, config.train.eval_every, config.train.num_samples = steps, 0, 0
    config.train.checkpoint_every, config.train.log_every = steps, 100
    config.generate.steps, config.generate.history_ratio, config.generate.guidance = 6, 0.0, slot("none")
    config.generate.fps = 8.0
    if run in ("one copy", "ladder"):
        config.sequence.copies = 1
        config.corruption.frames = slot("independent", clean=0.5)
    if run == "ladder":
        model.memory, config.sequence.attention = (2,), slot("ladder", frames=(2,))
    errors = {
        "random codes": slot("uniform", most=0.2), "bank": slot("bank"), "own": slot("own", most=1.0),
        "chain": slot("own", clean=0.0, least=1.0, most=1.0, links=3, every=4),
    }  # fmt: skip
    if run in errors:
        config.corruption.errors = errors[run]
    if run in TUNED:
        config.sequence.copies, config.train.num_steps, config.train.checkpoint_every = 1, steps // 4, steps // 4
        config.loss.teacher = str(runs / f"one copy {seed}")
        config.optimizer.learning_rate = 5e-4
        config.train.rollout = slot("streaming", most=60) if run == "streaming" else slot("window", frames=30)
        changes = FIFO
    for name, value in (changes or {}).items():
        config.generate[name] = value
    return config_loading.parse(config)


def trained(run, tokens, steps, seed, runs):
    """Train a run, or read it if it is there; return its config and parameters."""
    if run in TUNED:
        trained("one copy", tokens, steps, seed, runs)
    config, workdir = config_of(run, tokens, steps, seed, runs), runs / f"{run} {seed}"
    if not (workdir / "checkpoints" / str(config.train.num_steps)).exists():
        train(config, workdir, init_from=config.loss.teacher)
    checkpointer = Checkpointer(workdir, read_only=True)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make_objective(config).definition.abstract
    )
    params = checkpointer.restore_params(abstract, checkpointer.latest_step())
    checkpointer.close()
    return config, params


def measure(config, params, num_frames, seed):
    """Return what is right in each tenth of videos, each [PARTS]."""
    rng = np.random.default_rng(1000 + seed)
    true, background, corners, colour = map(np.stack, zip(*(world(rng, num_frames) for _ in range(VIDEOS))))
    session = Session(make_engine(config, make_objective(config).definition), params)
    text = TextTokenizer(config.text.model)
    ids, lengths = zip(*(text.encode(f"a {COLOURS[c]} block", config.sequence.text_length) for c in colour))
    session.prefill(np.stack(ids), np.array(lengths, np.int32), row_keys(seed, VIDEOS), true[:, :GIVEN])
    made = np.concatenate([true[:, :GIVEN], np.stack(list(session.frames(num_frames - GIVEN)), axis=1)], axis=1)
    return read(made, background, corners[:, :GIVEN], colour)


def read(made, background, given, colour):
    """Return the shares of right background, of whole blocks and of right steps in each tenth."""
    rows = np.arange(SIDE)
    inside = lambda corner: (
        ((rows >= corner[0]) & (rows < corner[0] + 2))[:, None] & ((rows >= corner[1]) & (rows < corner[1] + 2))[None]
    )
    kept, whole, steps = (np.full(made.shape[:2], np.nan) for _ in range(3))
    for n, video in enumerate(made):
        unknown = np.logical_and.reduce([inside(corner) for corner in given[n]])  # never seen
        places = []
        for t, frame in enumerate(video):
            of_block = frame >= TEXTURES
            found = np.argwhere(frame == TEXTURES + 4 * colour[n])
            good = len(found) == 1 and (found[0] < SIDE - 1).all() and of_block.sum() == 4
            good = (
                good
                and (
                    frame[tuple(slice(i, i + 2) for i in found[0])].reshape(-1)
                    == TEXTURES + 4 * colour[n] + np.arange(4)
                ).all()
            )
            places.append(found[0] if good else None)
            whole[n, t] = good
            judged = ~unknown & ~of_block
            kept[n, t] = (frame == background[n])[judged].mean() if judged.any() else np.nan
        for t in range(4, len(video)):
            a, b, c = places[t - 4], places[t - 2], places[t]
            if a is None or b is None or c is None or (a == b).any():
                steps[n, t] = 0
            else:
                steps[n, t] = (move(b, np.sign(b - a))[0] == c).all()
    parts = np.array_split(np.arange(GIVEN, made.shape[1]), PARTS)
    return {
        name: [float(np.nanmean(x[:, part])) for part in parts]
        for name, x in (("background", kept), ("block", whole), ("steps", steps))
    }


def table(rows):
    """Return the rows as Markdown, the best arm first: means over seeds and their deviation, and what an arm gains over `fifo`, seed by seed;
    bold where that is more than two deviations."""
    of = {}
    for row in rows:
        of.setdefault(row["arm"], {})[row["seed"]] = row
    percent = lambda arm, name, part: np.array([100 * row[name][part] for row in of[arm].values()])
    base = {seed: 100 * row["background"][-1] for seed, row in of.get("fifo", {}).items()}
    shown = lambda x: f"{x.mean():.1f}" + (f" ± {x.std(ddof=1):.1f}" if len(x) > 1 else "")
    lines = []
    for arm, seeds in of.items():
        gains = np.array([100 * row["background"][-1] - base[seed] for seed, row in seeds.items() if seed in base])
        gain = shown(gains) if len(gains) and arm != "fifo" else ""
        if len(gains) > 1 and abs(gains.mean()) > 2 * gains.std(ddof=1):
            gain = f"**{gain}**" if gain else ""
        background = f"{shown(percent(arm, 'background', 0))}; {shown(percent(arm, 'background', -1))}"
        line = f"| {arm} | {len(seeds)} | {background} | {gain} | {shown(percent(arm, 'block', -1))} |"
        lines.append((percent(arm, "background", -1).mean(), line))
    head = "| arm | seeds | background, first and last tenth | more than `fifo`, last tenth | whole block, last tenth |"
    return "\n".join([head, "|---|---|---|---|---|", *(line for _, line in sorted(lines, reverse=True))])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--frames", type=int, default=60)
    asked = parser.parse_args()
    tokens = asked.out.absolute() / "tokens"
    if not (tokens / "manifest.json").exists():
        write_tokens(tokens)
    path = asked.out / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row.get("frames", 60) == asked.frames]
    for seed in range(asked.seeds):
        for arm in asked.arms.split(","):
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            run, changes = ARMS[arm]
            arguments = run, tokens, asked.steps, seed, tokens.parent
            _, params = trained(*arguments)
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "frames": asked.frames,
                    **measure(config_of(*arguments, changes), params, asked.frames, seed),
                }
            )
            with path.open("a") as file:
                file.write(json.dumps(rows[-1] | {"trained": asked.steps, "versions": versions()}) + "\n")
            print(
                arm,
                seed,
                [round(100 * x) for x in rows[-1]["background"]],
                round(100 * rows[-1]["steps"][-1]),
                flush=True,
            )
    print(table(rows))


if __name__ == "__main__":
    main()
