"""What bounds `lumos tokenize`, decoding or encoding, and how close it comes to the slower of the two: `python benchmarks/tokenizing.py`.

Tokenises 64 clips of 49 frames at 256x256, in batches of 4. Decoding alone is the same command with an encoder that takes no time. The
encoders: two that take half and twice the time of decoding and no processor, as an accelerator does, and a small net on the CPU, which
shares the processor with the decoders: it cannot reach the slower of the two, only the sum of their times. Prints a line of JSON for each:
frames a second of decoding alone, of encoding alone and of both; the ratio to the slower; and the share of the time in which the encoder
waits, from the second batch on.
"""

import argparse
import json
import os
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

CLIPS, FRAMES = 64, 49
BATCH = (4, FRAMES, 128, 128, 3)
NUM_BATCHES = CLIPS // BATCH[0]
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
    parser.add_argument("--only", choices=("half", "twice", "net"), action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for i in range(CLIPS):
            coarse = rng.integers(0, 255, (FRAMES, 16, 16, 3), dtype=np.uint8)
            write_video(folder / "clips" / f"{i:03d}.mp4", coarse.repeat(16, 1).repeat(16, 2), 24)
        index(folder / "clips", folder / "m.jsonl", DataConfig())
        data = DataConfig(
            source="clips",
            path=str(folder / "m.jsonl"),
            buckets=(BATCH[1:4],),
            batch_size=BATCH[0],
            num_threads=os.cpu_count(),
            cache_gb=0,
        )
        config = Config(data=data, tokenizer=NET)
        real = Tokenizer(NET, make_definition(NET).init(jax.random.key(0)))
        real.encode(np.zeros(BATCH, np.uint8))  # compiles
        decoding = tokenizing(config, Asleep(0), folder / "decoding")["seconds"]
        encoders = {
            "half": Asleep(decoding / 2 / NUM_BATCHES),
            "twice": Asleep(2 * decoding / NUM_BATCHES),
            "net": real,
        }
        for kind in arguments.only or encoders:
            encoding = encoding_alone(encoders[kind])
            decoding = tokenizing(config, Asleep(0), folder / f"decoding {kind}")["seconds"]
            both = tokenizing(config, encoders[kind], folder / kind)
            facts = {"decoding": decoding, "encoding": encoding, "both": both.pop("seconds")}
            rates = {f"{name}_frames_per_s": round(CLIPS * FRAMES / seconds, 1) for name, seconds in facts.items()}
            bound = max("decoding", "encoding", key=facts.get)
            print(
                json.dumps(
                    {"encoder": kind, **rates, "bound": bound, "ratio": round(facts[bound] / facts["both"], 3), **both}
                )
            )


def tokenizing(config: Config, tokenizer, out: Path) -> dict[str, float]:
    """Return the seconds of a whole command, and the share of them in which the encoder waited."""
    spent, encode = encode_shards.Spent(), encode_shards.encode_shards
    tokenize.encode_shards = lambda *inputs: encode(*inputs, spent)
    began = time.perf_counter()
    tokenize.tokenize(config, tokenizer, out, splits=("train",), clips_per_shard=8)
    seconds = time.perf_counter() - began
    tokenize.encode_shards = encode
    waiting = spent.waiting - spent.first
    return {"seconds": seconds, "waiting": round(waiting / (waiting + spent.encoding), 4)}


def encoding_alone(tokenizer) -> float:
    video = np.random.default_rng(0).integers(0, 255, BATCH, dtype=np.uint8)
    began = time.perf_counter()
    for _ in range(NUM_BATCHES):
        tokenizer.encode(video)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
