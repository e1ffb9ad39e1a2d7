"""Damage video files at random and see what `lumos data index` and the decoder make of them.

`python tests/fuzz_videos.py --files=1000` (part of `make torture`) takes real clips, where ../shared/data/real is there,
and generated ones of several formats, and cuts, flips, zeroes, splices, shuffles and renames them. Every file must
either be listed in the manifest or in the list of rejected files with a reason; what is listed must decode, or fail
with a reason. Decoder crashes and hangs may cost a worker, never this process. With `--speed` it also measures how
much faster decoding is without worker processes, and without bad files in between.

Prints one line of JSON and exits with 1 when a file got neither a place nor a reason.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

# ruff: noqa: E402
import av
import numpy as np

from lumos import config_loading
from lumos.config import DataConfig
from lumos.data import decoder, video, video_writer
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.pipeline import make_pipeline
from lumos.errors import UserError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
FORMATS = {
    "h264.mp4": ("libx264", "yuv420p"), "ten_bit.mkv": ("libx264", "yuv420p10le"), "mpeg2.mpg": ("mpeg2video", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "yuv420p"), "mjpeg.mov": ("mjpeg", "yuvj420p"), "vp8.webm": ("libvpx", "yuv420p"),
}  # fmt: skip


def make_bases(folder: Path, real: bool) -> list[Path]:
    """Write small clips of several formats; add real ones."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (24, 12, 16, 3), dtype=np.uint8).repeat(6, 1).repeat(6, 2)
    for name, (codec, pixels) in FORMATS.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=24, options={"g": "8"})
            stream.height, stream.width, stream.pix_fmt = 72, 96, pixels
            for frame in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    video_writer.write_video(folder / "a.gif", noise, 24)
    video_writer.write_video(folder / "a.png", noise[:1], 1)
    clips = sorted(path for path in REAL.rglob("*") if path.suffix in video.VIDEO_SUFFIXES) if real else []
    return sorted(folder.iterdir()) + clips


def damage(rng: random.Random, bases: list[Path]) -> tuple[bytes, str]:
    """Return the bytes of a damaged file, and a suffix for it."""
    path = rng.choice(bases)
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        size = max(1, len(data))
        start, length = rng.randrange(size), rng.choice([1, 16, 400, size // 10 + 1, size])
        kind = rng.choice(["cut", "head", "flip", "flip header", "zero", "random", "splice", "repeat", "drop"])
        if kind == "cut":
            del data[start:]
        elif kind == "head":
            del data[: min(start, 1000)]
        elif kind in ("flip", "flip header"):
            for _ in range(rng.choice([1, 10, 100, 1000])):
                if data:
                    data[rng.randrange(min(len(data), 600) if kind == "flip header" else len(data))] ^= (
                        1 << rng.randrange(8)
                    )
        elif kind == "zero":
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif kind == "random":
            data[start : start + length] = rng.randbytes(len(data[start : start + length]))
        elif kind == "splice":
            data[start:] = rng.choice(bases).read_bytes()[-length:]
        elif kind == "repeat":
            data[start:start] = data[start : start + min(length, 10**6)]
        else:
            del data[start : start + length]
    suffix = rng.choice(video.VIDEO_SUFFIXES + video.IMAGE_SUFFIXES) if rng.random() < 0.15 else path.suffix
    return bytes(data), suffix


def fuzz(folder: Path, num: int, seed: int, real: bool) -> dict:
    """Damage `num` files, fifty at a time, and return what became of them."""
    rng, bases = random.Random(seed), make_bases(folder / "bases", real)
    counts, reasons, problems, slowest = collections.Counter(), collections.Counter(), [], 0.0
    for first in range(0, num, 50):
        clips, names = folder / f"clips-{first}", set()
        clips.mkdir()
        for i in range(first, min(first + 50, num)):
            data, suffix = damage(rng, bases)
            names.add(f"{i:04d}{suffix}")
            (clips / f"{i:04d}{suffix}").write_bytes(data)
        manifest, rows = folder / "manifest.jsonl", []
        try:
            index(clips, manifest, DataConfig())
            rows = read_manifest(manifest)
        except UserError as error:
            assert "none of" in str(error), error
        refused = [json.loads(line) for line in manifest.with_suffix(".rejected.jsonl").read_text().splitlines()]
        told = {Path(row["path"]).name: row["reason"] for row in refused}
        used = {row["id"] for row in rows}
        problems += [f"{name} is in neither list or in both" for name in names if (name in told) == (name in used)]
        problems += [
            f"{name}: the reason is {reason!r}" for name, reason in told.items() if not reason or "\n" in reason
        ]
        counts["rejected"] += len(told)
        reasons.update(kind_of(reason) for reason in told.values())
        for row in rows:
            began = time.monotonic()
            try:
                first = row["frames"] // 3
                start, frames = first / (row["fps"] or 1), min(row["frames"] - first, 9)
                decoder.read_clip(row["path"], start=start, num_frames=frames, height=32, width=32)
                counts["decoded"] += 1
            except UserError as error:
                counts["failed in decoding"] += 1
                reasons[kind_of(str(error).removeprefix(f"{row['path']}: "))] += 1
            slowest = max(slowest, time.monotonic() - began)
        for path in clips.iterdir():
            path.unlink()
    return {
        "files": num,
        **{name: counts[name] for name in ("rejected", "decoded", "failed in decoding")},
        "reasons": dict(reasons),
        "slowest_decode_s": round(slowest, 2),
        "problems": problems,
    }


def kind_of(reason: str) -> str:
    return reason.split("(")[0].strip() if not reason.startswith("the decoder") else reason


def speed(folder: Path, seed: int) -> dict:
    """Measure clips per second: by worker processes against this process, and with bad files against without."""
    rng, bases = random.Random(seed), make_bases(folder / "speed-bases", real=False)
    sources = [path for path in (REAL / "gesture").glob("*")] or [path for path in bases if path.suffix != ".png"]
    clips = folder / "speed"
    clips.mkdir()
    for i in range(60):
        (clips / f"good-{i:02d}{sources[i % len(sources)].suffix}").write_bytes(sources[i % len(sources)].read_bytes())
    index(clips, folder / "clean.jsonl", DataConfig())
    for i in range(60):
        data, suffix = damage(rng, sources)
        (clips / f"bad-{i:02d}{suffix}").write_bytes(data)
    index(clips, folder / "mixed.jsonl", DataConfig())

    def rate(manifest: str) -> tuple[float, int]:
        config = config_loading.default()
        config.task, config.data.source, config.data.path = "tokenizer", "clips", str(folder / manifest)
        config.data.buckets, config.data.batch_size, config.data.cache_gb = ((17, 64, 64),), 4, 0.0
        with make_pipeline(config_loading.parse(config), "train", process_index=0, process_count=1) as pipeline:
            next(pipeline)
            began = time.perf_counter()
            for _ in range(40):
                next(pipeline)
            return 160 / (time.perf_counter() - began), pipeline.num_replaced

    def decode_rate(read) -> float:
        rows = read_manifest(folder / "clean.jsonl")[:20]
        began = time.perf_counter()
        for row in rows:
            read(row["path"], num_frames=17, height=64, width=64)
        return len(rows) / (time.perf_counter() - began)

    decode_rate(decoder.read_clip)  # starts the worker
    direct, workers, clean, mixed, replaced = [], [], [], [], 0
    for _ in range(7):  # in turns, so that a busy machine disturbs all alike
        direct.append(decode_rate(video.read_clip))
        workers.append(decode_rate(decoder.read_clip))
        clean.append(rate("clean.jsonl")[0])
        value, count = rate("mixed.jsonl")
        mixed.append(value)
        replaced += count
    median = lambda values: round(float(np.median(values)), 1)
    return {
        "direct_clips_per_s": median(direct),
        "worker_clips_per_s": median(workers),
        "clean_clips_per_s": median(clean),
        "mixed_clips_per_s": median(mixed),
        "mixed_to_clean": round(float(np.median(np.divide(mixed, clean))), 3),
        "bad_clips_in_mixed_manifest": len(read_manifest(folder / "mixed.jsonl")) - 60,
        "replaced": replaced,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), arguments.files, arguments.seed, real=True)
        if arguments.speed:
            report["speed"] = speed(Path(folder), arguments.seed)
    decoder.close()
    print(json.dumps(report | {"seconds": round(time.monotonic() - began)}))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
