"""What comes with the frames of a clip (actions, rewards, poses), as a few integers for every latent frame.

A stream is a column of the file that `actions` of a manifest's row refers to: an array with a row for every frame, of one number or
of several. Its codes stand before those of their frame in the sequence (`sequence.streams`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lumos.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How an array becomes a stream. It has one code more than `codes`: null, the last one, before the first frame."""

    name: str = "action"  # column of the array
    codes: int = 2  # whole numbers below this; or bins of equal width
    names: tuple[str, ...] = ()  # of the codes, as players see them; () = their numbers
    low: float = 0.0  # the bins lie between low and high, values beyond are in the outer ones; both 0 = whole numbers
    high: float = 0.0
    # Rows that a latent frame has, the newest last: 1 = the one that leads to its last frame of pixels; as many as the tokenizer
    # compresses to one = all of its own; more reach back into the frames before (GameFactory)
    rows: int = 1
    leads: bool = True  # a row leads to its frame (`lumos data record`); False: it is chosen at its frame (LeRobot)

    def __post_init__(self):
        if self.codes < 1 or self.rows < 1:
            raise ValueError(f"codes={self.codes} and rows={self.rows} must be at least 1")
        if self.names and len(self.names) != self.codes:
            raise ValueError(f"names={self.names} must be one for each of codes={self.codes}")
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")

    @property
    def size(self) -> int:
        """How many codes the stream has, null included."""
        return self.codes + 1

    @property
    def null(self) -> int:
        return self.codes

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Return the codes of values, int32 of the same shape. Raises UserError for what is no code and no number."""
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"stream {self.name!r} holds values that are not finite")
        if self.high > self.low:
            bins = np.floor((values - self.low) / (self.high - self.low) * self.codes)
            return np.clip(bins, 0, self.codes - 1).astype(np.int32)
        if (values != np.rint(values)).any() or values.min(initial=0) < 0 or values.max(initial=0) >= self.codes:
            raise UserError(
                f"stream {self.name!r} holds values from {values.min():g} to {values.max():g}, which must be whole numbers below codes="
                f"{self.codes}; set its low and high to sort them into bins"
            )
        return values.astype(np.int32)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return the middles of the bins of codes, or the whole numbers themselves, float32: the inverse of `quantize`."""
        width = (self.high - self.low) / self.codes
        codes = np.asarray(codes, np.float32)
        return self.low + (codes + 0.5) * width if width else codes

    def encode(self, values_FA: np.ndarray, stride: int) -> np.ndarray:
        """Return the codes of every latent frame, int32 [T, rows * A], of a clip of 1 + stride * (T - 1) frames. Raises UserError."""
        codes_FA = self.quantize(values_FA)
        # Row i leads to frame i; no frame is before the first.
        leading_FA = codes_FA if self.leads else np.concatenate([codes_FA[:1], codes_FA[:-1]])
        last_T1 = np.arange(0, len(codes_FA), stride)[:, None]
        rows_TR = last_T1 + np.arange(1 - self.rows, 1)
        codes_TRA = np.where((rows_TR > 0)[..., None], leading_FA[np.maximum(rows_TR, 0)], self.null)
        return codes_TRA.reshape(len(last_T1), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionsConfig:
    """Latent actions (lumos/latent_actions): of task "actions", and learnt beside a transformer."""

    codes: int = 8  # latent actions
    code_dim: int = 32  # channels of their codes
    history: int = 1  # latent frames before a frame that tell what led to it
    width: int = 128  # of the inverse and of the forward model, a multiple of 32
    num_layers: int = 2  # residual blocks, of two 3x3 convolutions, of each of the two
    # Pulls what the inverse model says to its code. The loss is a mean over tokens, most of which stay: more of this would hold together
    # what the loss drives apart, and codes would stand for two actions
    commitment_weight: float = 0.01
    codebook_decay: float = 0.9  # of the running counts and sums of the codes, which are few and have to follow
    codebook_reset: float = 0.1  # codes used less than this share of the mean start anew; 0 = never
    # Transformer runs: weight of the loss of a latent action model that is trained in the same steps and whose codes are the stream of the
    # transformer; 0 = streams come with the tokens
    weight: float = 0.0

    @property
    def size(self) -> int:
        """How many codes the stream has, null included."""
        return self.codes + 1


def check(streams: tuple[StreamConfig, ...], source: str, body: str) -> None:
    """Raise UserError where clips of such a source, and tokens of such a tokenizer, cannot have streams, or two are called alike."""
    names = [stream.name for stream in streams]
    if streams and (source != "clips" or body != "causal"):
        raise UserError(
            f"config.data.streams comes with the frames of clips into their tokens: set config.data.source='clips' (now {source!r}) and "
            f"config.tokenizer.body='causal' (now {body!r})"
        )
    if len(set(names)) < len(names):
        raise UserError(f"config.data.streams: two are called {max(names, key=names.count)!r}")


def of_clip(streams: tuple[StreamConfig, ...], columns: dict[str, np.ndarray], stride: int) -> dict[str, np.ndarray]:
    """Return `stream_0`, `stream_1`, ... of a clip whose columns are float32 [F, A], int32 [T, tokens] each. Raises UserError."""
    return {f"stream_{i}": stream.encode(columns[stream.name], stride) for i, stream in enumerate(streams)}


def tokens_of(manifest: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return (codes, tokens of a latent frame) of the streams in a token folder, as `sequence.streams` has them."""
    return tuple((stream["codes"] + 1, stream["tokens"]) for stream in manifest.get("streams", ()))
