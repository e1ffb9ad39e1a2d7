"""What a change of the prompt costs, in the world of benchmarks/drift.py: adherence and identity for keep, recache and flush.

    python benchmarks/switches.py --out=drift [--seeds=3] [--steps=1200] [--guidance=4] [--arms="fifo,random codes"]

Videos take the prompt of another colour after some frames. Adherence: the cells of the block that have the new colour. Identity: the background, which is in
no prompt, is still the one before the change. Both in the first frame behind the change and in the last one. Training runs are those of drift.py, kept in --out.
"""

import argparse
from pathlib import Path

import drift
import numpy as np

from lumos.data.text import TextTokenizer
from lumos.generation.sampler import row_keys
from lumos.generation.session import SWITCHES, Session
from lumos.slots import slot
from lumos.training.from_config import make_objective
from lumos.videos.generator import make_engine

BEFORE, AFTER, VIDEOS = 8, 12, 64  # frames made before the change and behind it
ARMS = ("fifo", "sink realigned", "random codes", "random codes and sink")


def measure(config, params, seed):
    """Return adherence and identity of the first and the last frame behind the change, by how the prompt changes."""
    rng = np.random.default_rng(2000 + seed)
    worlds = [drift.world(rng, drift.GIVEN) for _ in range(VIDEOS)]
    true, background, _, colour = map(np.stack, zip(*worlds))
    text, length, new = TextTokenizer(config.text.model), config.sequence.text_length, (colour + 1) % len(drift.COLOURS)
    prompts = lambda numbers: map(np.array, zip(*(text.encode(f"a {drift.COLOURS[n]} block", length) for n in numbers)))
    session, found = Session(make_engine(config, make_objective(config).definition), params), {}
    for how in SWITCHES:
        ids, lengths = prompts(colour)
        session.prefill(ids, lengths.astype(np.int32), row_keys(seed, VIDEOS), true)
        before = list(session.frames(BEFORE))[-1]
        ids, lengths = prompts(new)
        session.switch(ids, lengths.astype(np.int32), how)
        after = list(session.frames(AFTER))
        for when, frame in (("first", after[0]), ("last", after[-1])):
            is_block, is_new = frame >= drift.TEXTURES, (frame - drift.TEXTURES) // 4 == new[:, None, None]
            share = (is_block & is_new).sum((1, 2)) / np.maximum(is_block.sum((1, 2)), 1)
            judged = ~is_block & (before < drift.TEXTURES)
            kept = ((frame == background) & judged).sum((1, 2)) / judged.sum((1, 2))
            found[how, when] = float(share.mean()), float(kept.mean())
    return found


def _shown(seeds, how, what):
    """Return the means over seeds in %, and how much more they are than those of recache, seed by seed."""
    cells = []
    for when in ("first", "last"):
        values = 100 * np.array([found[how, when][what] for found in seeds])
        more = values - 100 * np.array([found["recache", when][what] for found in seeds])
        spread = f" ± {more.std(ddof=1):.1f}" if len(seeds) > 1 else ""
        cells.append(f"{values.mean():.1f}" + ("" if how == "recache" else f" ({more.mean():+.1f}{spread})"))
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of the text")
    parser.add_argument("--arms", default=",".join(ARMS))
    asked = parser.parse_args()
    tokens = asked.out.absolute() / "tokens"
    if not (tokens / "manifest.json").exists():
        drift.write_tokens(tokens)
    print("| arm, % | adherence, first frame | last | identity, first frame | last |\n|---|---|---|---|---|")
    for arm in asked.arms.split(","):
        run, changes = drift.ARMS[arm]
        if asked.guidance != 1.0:
            changes = changes | {"guidance": slot("text", scale=asked.guidance)}
        seeds = []
        for seed in range(asked.seeds):
            arguments = run, tokens, asked.steps, seed, tokens.parent
            _, params = drift.trained(*arguments)
            seeds.append(measure(drift.config_of(*arguments, changes), params, seed))

        for how in SWITCHES:
            print(f"| {arm}, {how} |", " | ".join(_shown(seeds, how, 0) + _shown(seeds, how, 1)), "|", flush=True)


if __name__ == "__main__":
    main()
