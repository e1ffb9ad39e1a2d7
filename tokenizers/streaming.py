"""Long videos in chunks: what temporal layers remember, and encoding and decoding with constant work per chunk.

Everything in the causal VAE looks at earlier frames only, so a video can pass through it chunk by chunk with the result
of one pass. A temporal convolution remembers the frames its kernel reaches back to; temporal attention remembers keys
and values of all earlier latent frames, or of the last `temporal_window` of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.geometry import token_grid
from lumos.model.definition import Definition


@functools.partial(jax.tree_util.register_dataclass, data_fields=("k", "v", "seen"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class KeyMemory:
    """Keys and values [N, slots, 1, C] of the latest frames, the newest in the last slot; `seen` slots are filled."""

    k: jax.Array
    v: jax.Array
    seen: jax.Array

    def grown(self, slots: int) -> KeyMemory:
        """Return the same memory with at least this many slots."""
        extra = max(slots - self.k.shape[1], 0)
        pad = lambda x: jnp.pad(x, ((0, 0), (extra, 0), (0, 0), (0, 0)))
        return KeyMemory(pad(self.k), pad(self.v), self.seen)


class Stream:
    """One pass of a chunk through the network; layers take and leave their memory in the order in which they run.

    Attributes:
      first: the chunk starts the video.
      memory: what the next chunk needs, one entry per temporal layer.
      forgets: the chunk is the whole video, so `memory` stays empty.
    """

    def __init__(self, memory: list[Any] | None = None, slots: int = 0, *, forgets: bool = False):
        """Continue after the chunk that left `memory`. `slots`: of attention without a window, 0 = do not remember."""
        self.first, self.forgets = memory is None, forgets
        self.memory: list[Any] = []
        self._past, self._slots = iter(memory or ()), slots

    def extend(self, x_BTHWC: jax.Array, num: int) -> jax.Array:
        """Put the `num` frames before the chunk in front of it: at the start, copies of the first frame."""
        before = jnp.repeat(x_BTHWC[:, :1], num, axis=1) if self.first else next(self._past)
        extended = jnp.concatenate([before, x_BTHWC], axis=1)
        if not self.forgets:
            self.memory.append(extended[:, extended.shape[1] - num :])
        return extended

    def attend(self, q_NTKC: jax.Array, k_NTKC: jax.Array, v_NTKC: jax.Array, window: int) -> jax.Array:
        """Causal attention of the chunk's frames over themselves and the remembered ones."""
        length, slots = q_NTKC.shape[1], max(window - 1, 0) if window else self._slots
        if self.first:
            reach = (window - 1, 0) if window else None
            out = jax.nn.dot_product_attention(q_NTKC, k_NTKC, v_NTKC, is_causal=True, local_window_size=reach)
            past, seen = None, jnp.int32(0)
        else:
            past = next(self._past)
            seen, num_past = past.seen, past.k.shape[1]
            k_NTKC, v_NTKC = (jnp.concatenate(pair, axis=1) for pair in ((past.k, k_NTKC), (past.v, v_NTKC)))
            query, key = num_past + jnp.arange(length)[:, None], jnp.arange(num_past + length)[None]
            visible = (key <= query) & (key >= num_past - seen)
            if window:
                visible &= key > query - window
            out = jax.nn.dot_product_attention(q_NTKC, k_NTKC, v_NTKC, mask=visible[None, None])
        if self.forgets:
            return out
        empty = jnp.zeros((k_NTKC.shape[0], slots, *k_NTKC.shape[2:]), k_NTKC.dtype)
        latest = lambda x: jnp.concatenate([empty, x], axis=1)[:, x.shape[1] :]
        self.memory.append(KeyMemory(latest(k_NTKC), latest(v_NTKC), jnp.minimum(seen + length, slots)))
        return out


class VideoStream:
    """Encode a video, or decode its tokens, as it comes. One object per video; encoding and decoding are independent.

    Each chunk shape compiles once; without a window the remembered keys double in size as the video grows, which compiles
    again each time.
    """

    def __init__(self, definition, config, params):
        self._config, self._params = config, params
        self._window, self._space = config.temporal_window, config.spatial_compression
        self._group = config.temporal_compression
        self._encoder, self._decoder = _Side(definition, "latents_of_chunk"), _Side(definition, "decode_chunk")
        self._quantize = _quantizer_program(definition)
        self._buffer: np.ndarray | None = None  # frames not encoded yet
        self._tail: np.ndarray | None = None  # the last group of encoded frames

    def encode(self, video_BFYXC: np.ndarray) -> np.ndarray:
        """Take the next frames, in [-1, 1]; return int32 tokens [B, *token grid] of the latent frames they complete."""
        return self._to_tokens(self.latents(video_BFYXC))

    def latents(self, video_BFYXC: np.ndarray) -> np.ndarray:
        """As `encode`, before quantisation: float32 [B, T, H, W, d]."""
        video = np.asarray(video_BFYXC)
        if video.ndim != 5 or video.shape[-1] != 3:
            raise UserError(f"a chunk of video is [B, F, Y, X, 3], got {list(video.shape)}")
        self._buffer = video if self._buffer is None else np.concatenate([self._buffer, video], axis=1)
        alone = int(self._encoder.memory is None)  # the first frame is a latent frame of its own
        frames = self._buffer.shape[1]
        return self._encode(alone + (frames - alone) // self._group * self._group if frames >= alone else 0)

    def finish(self) -> np.ndarray:
        """Encode what is left over; a last group that is not full is continued as the whole video would be."""
        left = 0 if self._buffer is None else self._buffer.shape[1]
        if not left:
            raise UserError("nothing left to encode: the stream ended with a full group of frames")
        recent = np.concatenate([self._tail, self._buffer], axis=1)
        self._buffer = recent[:, _mirrored(np.arange(recent.shape[1]), self._group)[self._group :]]
        return self._to_tokens(self._encode(self._group))

    @property
    def num_left(self) -> int:
        """How many frames wait for their group to fill."""
        return 0 if self._buffer is None else self._buffer.shape[1]

    def decode(self, indices_BTHW: np.ndarray) -> np.ndarray:
        """Take the next latent frames; return their video frames, float32 [B, F, Y, X, 3]: the first gives one."""
        return np.asarray(self._decoder(self._params, jnp.asarray(indices_BTHW), indices_BTHW.shape[1], self._window))

    def remembered(self) -> tuple:
        """Return what decoding goes on from: arrays that nothing changes."""
        return self._decoder.memory, self._decoder.frames, self._decoder.slots

    def go_on_from(self, remembered: tuple) -> None:
        """Decode as behind the frames after which `remembered` was asked for, by a stream of the same tokenizer."""
        self._decoder.memory, self._decoder.frames, self._decoder.slots = remembered

    def decode_more(self, params, indices_BTHW: jax.Array, memory: list) -> tuple[jax.Array, list]:
        """Decode latent frames behind `memory`, which is of one size whatever the length. To be compiled. Raises UserError."""
        if not self._window and any(isinstance(entry, KeyMemory) for entry in memory):
            raise UserError(
                "this tokenizer remembers all frames; set config.tokenizer.temporal_window for videos without end"
            )
        return self._decoder.run(params, indices_BTHW, memory, slots=self._decoder.slots)

    def to_arrays(self) -> list[np.ndarray]:
        """Return what decoding goes on from, to be saved."""
        return [np.asarray(x) for x in jax.tree.leaves(self._decoder.memory)]

    def from_arrays(self, arrays: list[np.ndarray], shape: tuple[int, ...], num_frames: int) -> None:
        """Decode as behind so many latent frames, from what `to_arrays` gave there. `shape`: [B, 1, H, W] of a latent frame."""
        self._decoder.go_on(self._params, jax.ShapeDtypeStruct(shape, np.int32), arrays, num_frames, self._window)

    def _encode(self, num_frames: int) -> np.ndarray:
        chunk, self._buffer = self._buffer[:, :num_frames], self._buffer[:, num_frames:]
        if not num_frames:
            return np.zeros((chunk.shape[0], 0, *(size // self._space for size in chunk.shape[2:4]), 0), np.float32)
        before = np.repeat(chunk[:, :1], self._group, axis=1) if self._tail is None else self._tail
        self._tail = np.concatenate([before, chunk], axis=1)[:, -self._group :]
        return np.asarray(self._encoder(self._params, jnp.asarray(chunk), -(-num_frames // self._group), self._window))

    def _to_tokens(self, z_BTHWC: np.ndarray) -> np.ndarray:
        if not z_BTHWC.shape[1]:
            return np.zeros((len(z_BTHWC), *token_grid(self._config, z_BTHWC.shape[1:4])), np.int32)
        return np.asarray(self._quantize(self._params, z_BTHWC))


class _Side:
    """One direction of a stream: the compiled method and its memory."""

    def __init__(self, definition, method: str):
        self.run, self.memory, self.frames, self.slots = _chunk_program(definition, method), None, 0, 0

    def __call__(self, params, x, num_latents: int, window: int):
        self.frames += num_latents
        remembers_keys = self.memory is None or any(isinstance(entry, KeyMemory) for entry in self.memory)
        if not window and self.frames > self.slots and remembers_keys:
            self.slots = _slots(self.frames)
            grow = lambda entry: entry.grown(self.slots) if isinstance(entry, KeyMemory) else entry
            self.memory = self.memory and [grow(entry) for entry in self.memory]
        out, self.memory = self.run(params, x, self.memory, self.slots)
        return out

    def go_on(self, params, x, arrays: list[np.ndarray], num_latents: int, window: int) -> None:
        """Go on behind so many latent frames from the arrays of a memory."""
        self.frames, self.slots, self.memory = num_latents, 0 if window else _slots(min(num_latents, 1)), None
        if num_latents:
            _, memory = jax.eval_shape(functools.partial(self.run, slots=self.slots), params, x, None)
            if not window and any(isinstance(entry, KeyMemory) for entry in memory):
                self.slots = _slots(num_latents)
            self.memory = jax.tree.unflatten(jax.tree.structure(memory), [jnp.asarray(a) for a in arrays])


def _slots(num_latents: int) -> int:
    """Return how many keys are remembered without a window behind so many latent frames."""
    return max(8, 1 << (num_latents - 1).bit_length())


@functools.lru_cache(maxsize=8)
def _chunk_program(definition: Definition, method: str):
    """Return the jitted method over a chunk; streams of one tokenizer share it, so a new video compiles nothing."""

    def run(params, x, memory, slots):
        return getattr(definition.bind(params), method)(x, Stream(memory, slots))

    return jax.jit(run, static_argnames="slots")


@functools.lru_cache(maxsize=4)
def _quantizer_program(definition: Definition):
    return jax.jit(lambda params, z: definition.bind(params).quantizer(z).indices)


def reflect_index(num_frames: int, group: int) -> np.ndarray:
    """Return which frame stands at each place when a video is continued to whole groups, int [1 + group * k].

    The released tokenizer halves time log2(group) times and continues an odd count by mirroring its last element: so a
    video of any length has a code, and a length of 1 + group * k is left as it is. The first frame fills a group.
    """
    frames = np.concatenate([np.zeros(group - 1, int), np.arange(num_frames)])
    return _mirrored(frames, group)[group - 1 :]


def _mirrored(frames: np.ndarray, group: int) -> np.ndarray:
    run = 1
    while run < group:
        blocks = frames.reshape(-1, run)
        if len(blocks) % 2:
            frames = np.concatenate([blocks, blocks[-2:-1]]).reshape(-1)
        run *= 2
    return frames
