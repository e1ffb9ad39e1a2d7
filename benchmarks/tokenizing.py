"""How long an encoder waits for clips: `python benchmarks/tokenizing.py --encode_ms=400`.

Tokenises 64 clips of 49 frames at 256x256, in batches of 4 with two threads, by an encoder that takes --encode_ms for a batch and no processor, as an
accelerator does, and by the real one (a small net on the CPU, which shares the processor with the decoders). Prints a line of JSON for each: the
share of the time, from the second batch on, in which the encoder waits; and clips a second.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from lumos.config import Config, DataConfig, TokenizerConfig
from lumos.data.index import index
from lumos.data.video_writer import write_video
from lumos.geometry import token_shape
from lumos.tokenizers import encode_shards, tokenize
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.pretrained import Tokenizer

CLIPS = 64
NET = TokenizerConfig(channels=8, channel_mult=(1, 1), mid_attention=False)


class Asleep:
    fingerprint, codebook_size, config = "asleep", 1000, NET

    def __init__(self, seconds: float):
        self._seconds = seconds

    def token_shape(self, *shape: int) -> tuple[int, int, int]:
        return token_shape(NET, *shape)

    def encode(self, video_BFYX3: np.ndarray) -> np.ndarray:
        time.sleep(self._seconds)
        return np.zeros((len(video_BFYX3), *self.token_shape(*video_BFYX3.shape[1:4])), np.int32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--encode_ms", type=float, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for i in range(CLIPS):
            coarse = rng.integers(0, 255, (49, 16, 16, 3), dtype=np.uint8)
            write_video(folder / "clips" / f"{i:03d}.mp4", coarse.repeat(16, 1).repeat(16, 2), 24)
        index(folder / "clips", folder / "m.jsonl", DataConfig())
        data = DataConfig(
            source="clips", path=str(folder / "m.jsonl"), buckets=((49, 128, 128),), batch_size=4, cache_gb=0
        )
        config = Config(data=data, tokenizer=NET)
        real = Tokenizer(NET, make_definition(NET).init(jax.random.key(0)))
        real.encode(np.zeros((4, 49, 128, 128, 3), np.uint8))  # compiles
        encode = encode_shards.encode_shards
        for kind, tokenizer in (("asleep", Asleep(arguments.encode_ms / 1000)), ("real", real)):
            spent = encode_shards.Spent()
            tokenize.encode_shards = lambda *inputs, spent=spent: encode(*inputs, spent)
            began = time.perf_counter()
            tokenize.tokenize(config, tokenizer, folder / kind, splits=("train",), clips_per_shard=8)
            seconds = time.perf_counter() - began
            waiting = (spent.waiting - spent.first) / (spent.waiting - spent.first + spent.encoding)
            facts = {"encode_ms": round(1000 * spent.encoding / (CLIPS / 4)), "waiting": round(waiting, 4)}
            print(json.dumps({"encoder": kind, **facts, "clips_a_second": round(CLIPS / seconds, 2)}))


if __name__ == "__main__":
    main()
