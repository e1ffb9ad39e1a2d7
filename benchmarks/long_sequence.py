"""Peak memory of the loss of a sequence at the released sample size: 22 latent frames of 48x84 cells, 90,119 tokens.

    python benchmarks/long_sequence.py [--gradient=1]

A model of 2 layers, width 64, with the official vocabulary of markers and 1,024 visual codes, float32. A dense mask of this
length would take 32 GB in float32, the logits of all positions 3.7 GB.
"""

import argparse
import json
import resource
import time

import jax
import numpy as np

from lumos import config_loading
from lumos.evaluation.evaluate import versions
from lumos.interop import lumos1, lumos1_config
from lumos.layouts import make_layout
from lumos.sequence.lumos1 import build as lumos1_layout
from lumos.slots import slot

GRID, LENGTH = (22, 48, 84), 90_119
VISUAL_START, CODES = 9216, 1024


def make_model():
    config = config_loading.default()
    config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 2, 64, 128
    config.model.num_heads, config.model.num_kv_heads, config.model.head_dim = 2, 1, 32
    config.model.text_vocab, config.model.visual_vocab = VISUAL_START, CODES
    config.sequence.layout = slot("lumos1", visual_start=VISUAL_START)
    config = config_loading.parse(config)
    vocabulary = make_layout(config).vocabulary
    official = lumos1_config.official_config(config.model, vocabulary)
    spec = lumos1.Spec(config.model, vocabulary, config.sequence.layout.size_unit, official, {}, ())
    return lumos1.Lumos1(spec.definition.init(jax.random.key(0)), spec)


def make_sequence(vocabulary):
    """Return (masked ids, labels), int32 [1, LENGTH] each: as much text as the length leaves, half of the codes masked."""
    rng = np.random.default_rng(0)
    num_text = LENGTH - lumos1_layout(vocabulary, 0, GRID, fps=12, duration=7).length
    layout = lumos1_layout(vocabulary, num_text, GRID, fps=12, duration=7)
    text = rng.integers(9100, VISUAL_START, (1, num_text)).astype(np.int32)
    ids = np.array(layout.assemble(text, rng.integers(0, CODES, (1, *GRID)).astype(np.int32)))
    masked = (ids >= VISUAL_START) & (rng.random(ids.shape) < 0.5)
    return np.where(masked, vocabulary.mask, ids), np.where(masked, ids, -100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradient", type=int, default=0, help="1 takes the gradient of all parameters too")
    arguments = parser.parse_args()
    model = make_model()
    ids, labels = make_sequence(model.spec.vocabulary)
    start = time.perf_counter()
    if arguments.gradient:
        (loss, frames), _ = jax.value_and_grad(lambda m: m.loss(ids, labels), has_aux=True)(model)
    else:
        loss, frames = model.loss(ids, labels)
    result = {
        "num_tokens": ids.shape[1],
        "num_frames": len(frames),
        "loss": float(loss),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "versions": versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
