"""lumos on one page: a video model trained and sampled with the library's parts, and nothing else.

    python docs/core.py              # about a minute on two CPU cores; --steps=20 for a look

The "videos" are grids of codes: a 2 x 2 square of some colour that moves in some direction over a background. The prompt
is three tokens: colour, direction, and where the square begins. Each part below is a slot (docs/concepts.md): another layout, rule, corruption, plan or
sampler is another method, and nothing else on this page changes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lumos.config import GenerateConfig, ModelConfig
from lumos.generation.engine import Engine
from lumos.generation.guidance import TextGuidance
from lumos.generation.sampler import Confidence, row_keys
from lumos.model.transformer import make_definition
from lumos.sequence.arrangement import Compact
from lumos.sequence.corruption import CorruptionConfig, Independent, PerFrame, Uniform
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.sequence.targets import InPlace, Masked

COLOURS, MOVES = 3, ((0, 1), (0, -1), (1, 0), (-1, 0))
GRID = (3, 5, 5)  # latent frames, rows, columns
FIRST_WORD = 1  # text id 0 is padding


def draw(colour: int, move: int, place: int) -> np.ndarray:
    """Return a clip, codes [T, H, W] (0 = background, 1 + colour), whose square begins at cell `place`."""
    clip, (dy, dx), (y, x) = np.zeros(GRID, np.int32), MOVES[move], divmod(place, GRID[2])
    for t in range(GRID[0]):
        clip[t, y + t * dy : y + t * dy + 2, x + t * dx : x + t * dx + 2] = 1 + colour
    return clip


def make_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Draw clips whose squares stay inside, and their prompts [B, 3] of colour, direction and place."""
    clips, words = [], []
    for colour, move in zip(rng.integers(COLOURS, size=size), rng.integers(len(MOVES), size=size)):
        y, x = (rng.integers(max(0, -2 * d), 4 - max(0, 2 * d)) for d in MOVES[move])
        place = y * GRID[2] + x
        clips.append(draw(colour, move, place))
        words.append((colour, COLOURS + move, COLOURS + len(MOVES) + place))
    text = FIRST_WORD + np.array(words, np.int32)
    return {"tokens": np.stack(clips), "text": text, "text_length": np.full(size, 3, np.int32)}


# The sequence: three words of text, then the frames; a frame sees itself and earlier ones.
ARRANGEMENT, RULE, TARGETS, WEIGHTS = Compact(block=(1, 0, 0)), StageCausal(), InPlace(), Masked()
NUM_WORDS = FIRST_WORD + COLOURS + len(MOVES) + GRID[1] * GRID[2]
VOCABULARY = ARRANGEMENT.vocabulary(NUM_WORDS, 1 + COLOURS, start=False, streams=())
LAYOUT = ARRANGEMENT.layout(VOCABULARY, 3, GRID)

# The model: parameters are a plain dict, `bind` gives them a module.
MODEL = ModelConfig(num_layers=2, model_dim=64, mlp_dim=192, num_heads=2, num_kv_heads=1, scan_layers=False)
DEFINITION = make_definition(MODEL, VOCABULARY)

# Training hides any share of every frame, each for itself (diffusion forcing); a tenth of the clips lose their prompt.
CORRUPTION = CorruptionConfig(level=Uniform(), frames=Independent(), cells=PerFrame(), text_drop=0.1)


def loss(params, batch, key):
    """Return the mean cross-entropy of the hidden codes."""
    mask_key, drop_key = jax.random.split(key)
    drawn = CORRUPTION.draw(mask_key, len(batch["text"]), *LAYOUT.content_index.shape)
    ids_BL = LAYOUT.assemble(batch["text"], batch["tokens"])
    hidden_BJ = drawn.mask_BTC.reshape(len(ids_BL), -1)
    hidden_BL = jnp.zeros(ids_BL.shape, bool).at[:, LAYOUT.content_index.reshape(-1)].set(hidden_BJ)
    inputs_BL = CORRUPTION.kernel(key, ids_BL, hidden_BL, VOCABULARY)
    first_B = LAYOUT.first_key(batch["text_length"], CORRUPTION.drop_text(drop_key, len(ids_BL)))
    keys = KeyRanges.of(layout_ranges(LAYOUT, RULE), first_B)
    model = DEFINITION.bind(params)
    features_BLD = model.hidden(inputs_BL, LAYOUT.positions, keys)
    where = TARGETS(LAYOUT)
    weights_BJ, counts_BJ = WEIGHTS(hidden_BJ, drawn.ratio_BT)
    codes_BJ = ids_BL[:, where.target] - VOCABULARY.visual_start
    losses = MODEL.head.loss(model, features_BLD[:, where.source[:, 0]], codes_BJ, weights_BJ, chunk=1024)
    return losses.loss.sum() / counts_BJ.sum()


def train(num_steps: int, seed: int = 0):
    """Return the trained parameters and the loss of every step."""
    rng, rate = np.random.default_rng(seed), optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, max(num_steps, 51))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95))
    params = DEFINITION.init(jax.random.key(seed))
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state, batch, key):
        value, gradient = jax.value_and_grad(loss)(params, batch, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for i in range(num_steps):
        params, state, value = step(params, state, make_batch(rng, 32), jax.random.fold_in(jax.random.key(seed), i))
        losses.append(value)
    return params, [float(value) for value in losses]


def generate(params, text, seed: int = 0):
    """Return clips for prompts [B, 3], codes [B, T, H, W]: frame by frame over a cache, eight passes each."""
    settings = GenerateConfig(
        steps=8, sampler=Confidence(temperature=0.3), guidance=TextGuidance(scale=2.0), history_ratio=0.0
    )
    engine = Engine(DEFINITION, LAYOUT, settings, RULE, TARGETS)
    program = jax.jit(lambda *arguments: engine.decode(*arguments, num_given=0))
    nothing = np.zeros((len(text), *GRID), np.int32)
    return np.asarray(program(params, text, np.full(len(text), 3), nothing, row_keys(seed, len(text))))


def follows(codes: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return which clips show what their prompt says, and nothing else."""
    asked = [draw(colour, move - COLOURS, place - COLOURS - len(MOVES)) for colour, move, place in text - FIRST_WORD]
    return (codes == np.stack(asked)).all((1, 2, 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    params, losses = train(parser.parse_args().steps)
    print(f"loss {losses[0]:.3f} -> {np.mean(losses[-20:]):.3f}")
    text = make_batch(np.random.default_rng(1), 64)["text"]
    codes = generate(params, text)
    print(f"{follows(codes, text).mean():.0%} of 64 clips follow their prompt; the first one, {text[0] - FIRST_WORD}:")
    for row in range(GRID[1]):
        print("   ".join("".join(".123"[code] for code in frame[row]) for frame in codes[0]))


if __name__ == "__main__":
    main()
