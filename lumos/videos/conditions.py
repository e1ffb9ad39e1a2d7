"""What a video is made of beside its prompt: frames that are given, and what comes with its frames from outside, such as actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lumos.config import Config
from lumos.data.sources import parse_paths
from lumos.errors import UserError
from lumos.sequence.streams import StreamConfig
from lumos.tokenizers.pretrained import Tokenizer
from lumos.tokenizers.tokenize import read_manifest


def given_codes(
    tokenizer: Tokenizer, size: tuple[int, int], given: np.ndarray | None, batch: int, latent_frames: int
) -> np.ndarray:
    """Return the codes of given frames, int32 [B, T', rows, columns]; T' is 0 without any.

    given: pixels uint8 [F', Y, X, 3] or [B, F', Y, X, 3], or codes int32 [B, T', rows, columns]. size: rows and columns.
    """
    if given is None:
        return np.zeros((batch, 0, *size), np.int32)
    if given.ndim == 4 and given.dtype == np.int32:
        tokens = given
    else:
        given = np.reshape(given, (-1, *given.shape[-4:]))
        tokens = np.concatenate([tokenizer.encode(clip[None]) for clip in given])
    if tokens.shape[2:] != tuple(size) or tokens.shape[1] >= latent_frames:
        raise UserError(
            f"given frames {given.shape[1:4]} (frames, height, width) must be {tokenizer.frame_size(*size)} pixels and shorter than the "
            f"video to make: {tokens.shape[1]} of {latent_frames} latent frames"
        )
    return np.broadcast_to(tokens, (batch, *tokens.shape[1:])).astype(np.int32)


def as_streams(config: Config, streams: Sequence[np.ndarray], batch: int, latent_frames: int) -> tuple[np.ndarray, ...]:
    """Return the codes of every stream of the model, int32 [B, T, tokens]. One clip's, [T, tokens], are those of all.

    Raises UserError where they are not as many as the model has, or of other codes.
    """
    wanted = config.sequence.streams
    found = [np.asarray(codes) for codes in streams]
    found = [np.broadcast_to(x, (batch, *x.shape)) if x.ndim == 2 else x for x in found]
    shapes = [(batch, latent_frames, tokens) for _, tokens in wanted]
    if [x.shape for x in found] != shapes or any(x.dtype.kind not in "iu" for x in found):
        given = f"streams of shapes {[x.shape for x in found]}" if found else "no streams"
        raise UserError(
            f"{given} beside the video; this model has {len(wanted)} of whole numbers (clips, latent frames, tokens) {shapes}: their frames come "
            "with actions, from --actions, lumos play, or `streams`"
        )
    for i, (x, (size, _)) in enumerate(zip(found, wanted)):
        if x.min() < 0 or x.max() >= size:
            raise UserError(f"stream {i} holds codes from {x.min()} to {x.max()}; they must lie in [0, {size - 1}]")
    return tuple(x.astype(np.int32) for x in found)


def parse_actions(text: str, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of actions: names or numbers with commas, each perhaps several times: "turn left*4,none". Raises UserError."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, star, times = (word.strip() for word in part.partition("*"))
        number = names.index(name) if name in names else int(name) if name.isdigit() else len(names)
        if number >= len(names) or (star and not times.isdigit()):
            raise UserError(
                f"--actions: {part!r}; allowed: {', '.join(names)}, each perhaps several times: {names[0]}*4"
            )
        found += [number] * (int(times) if star else 1)
    if not found:
        raise UserError(f"--actions={text!r} names no action; allowed: {', '.join(names)}")
    return found


def streams_of_tokens(config: Config) -> tuple[StreamConfig, ...]:
    """Return how the streams of the tokens that a run was trained on were made; () where that is not known here."""
    known = {field.name for field in dataclasses.fields(StreamConfig)}
    read = lambda stream: {k: tuple(v) if k == "names" else v for k, v in stream.items() if k in known}
    try:
        manifest = read_manifest(parse_paths(config.data.path)[0][0])
    except (UserError, IndexError):
        return ()
    return tuple(StreamConfig(**read(stream)) for stream in manifest.get("streams", ()))


def following(rows: list[int], action: int, stride: int, tokens: int) -> list[int]:
    """Return the newest rows of the stream of actions behind one that leads to a latent frame of `stride` frames of pixels."""
    return (rows + [action] * stride)[-tokens:]


def planned_actions(config: Config, text: str, num_given: int, stride: int) -> np.ndarray:
    """Return the codes of the stream of a clip, int32 [T, tokens]: none leads to the given frames (or the first), then the actions of
    `text` one by one. Raises UserError."""
    if len(config.sequence.streams) != 1:
        raise UserError(
            f"--actions: config.sequence.streams={config.sequence.streams}; actions are the one stream of a world"
        )
    (size, tokens), found = config.sequence.streams[0], streams_of_tokens(config)
    names = found[0].names if found and found[0].names else tuple(map(str, range(size - 1)))
    rows = [size - 1] * tokens
    led = [rows] * max(num_given, 1)
    for action in parse_actions(text, names):
        rows = following(rows, action, stride, tokens)
        led.append(rows)
    return np.array(led, np.int32)
