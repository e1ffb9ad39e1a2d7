"""A world of tokens: a block on an empty floor makes one of four moves a frame, and the moves are known."""

import json

import numpy as np

from lumos.data.records import RecordWriter

SIDE, FRAMES, CODES = 5, 5, 8
MOVES = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])
STREAM = {
    "name": "action",
    "codes": 4,
    "names": ["right", "left", "down", "up"],
    "low": 0.0,
    "high": 0.0,
    "rows": 1,
    "leads": True,
}


def clip(rng):
    """Return tokens [FRAMES, SIDE, SIDE], 0 where the block is, and the moves that led to the frames, int32 [FRAMES, 1]; null first."""
    tokens, moves = np.ones((FRAMES, SIDE, SIDE), np.uint32), np.full((FRAMES, 1), len(MOVES), np.int32)
    place = rng.integers(0, SIDE, 2)
    for t in range(FRAMES):
        if t:
            inside = [i for i, move in enumerate(MOVES) if ((0 <= place + move) & (place + move < SIDE)).all()]
            moves[t] = rng.choice(inside)
            place = place + MOVES[moves[t, 0]]
        tokens[t, place[0], place[1]] = 0
    return tokens, moves


def write(folder, num=128):
    """Write a finished token folder, `num` clips a split, with the moves as the stream "action"; return it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        with RecordWriter(folder / f"{split}-00000-of-00001.array_record") as writer:
            for i in range(num):
                tokens, moves = clip(rng)
                writer.write({"tokens": tokens, "caption": "a block moves", "id": f"{split}/{i}", "stream_0": moves})
    manifest = {"grid": [FRAMES, SIDE, SIDE], "codebook_size": CODES, "tokenizer": {"fingerprint": None}, "fps": 4.0}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"streams": [STREAM | {"tokens": 1}]}))
    return folder
