"""A video that goes on: frame by frame, as long as wanted, with prompts that change, cuts, forks and steps back.

A session runs a program for its first frame and one for all later ones, whatever the length of the video. Under a bounded
cache policy its memory does not grow. Nothing waits for the device but who reads a frame.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumos.errors import UserError
from lumos.generation.engine import Engine, State
from lumos.generation.session_programs import Programs
from lumos.model.mixer import LINEAR
from lumos.sequence import rule

SWITCHES = ("keep", "recache", "flush")


class _Made(NamedTuple):
    """A finished frame: codes [B, H * W], how many latent frames later it stands by cuts, codes [B, tokens] of its streams."""

    codes: jax.Array
    cut: int
    streams: tuple[jax.Array, ...] = ()


class Session:
    """A batch of videos that are generated together. `frame` is the number of the next latent frame.

    The engine's layout needs two latent frames at least, and groups that are parts of single frames, in order.
    """

    def __init__(self, engine: Engine, params):
        if not engine.groups.per_frame or (engine.view.bounded and engine.layout.grid[0] < 2):
            raise UserError(
                "a session needs a layout whose groups are parts of single frames in order, of two latent frames at least: set "
                "config.sequence.layout=slot('compact', block=(1, 0, 0)), or use lumos generate"
            )
        if engine.settings.plan.is_whole:
            raise UserError(
                f"plan {engine.settings.plan.name!r} makes whole clips: a session, a bounded cache and a search need another"
            )
        self._engine, self.params, self._programs = engine, params, Programs(engine)
        self.state: State | None = None  # what the next frame is made of
        self._text: tuple[jax.Array, jax.Array] | None = None  # of the prompt: ids [B, P], lengths [B]
        self._made: dict[int, _Made] = {}  # by frame number: what encoding the history again may need
        self._cut = 0  # latent frames that what comes stands later
        self._planned: tuple[
            jax.Array, ...
        ] = ()  # codes [B, T, tokens] of the streams that are known, of frames from 0 on
        self.frame = 0

    def prefill(self, text_BP, text_length_B, keys_B, given_BTHW=None, streams=()) -> None:
        """Begin: text ids right-aligned [B, P], their lengths [B], a random key for each row [B], first frames if any, with the codes
        [B, T, tokens] of each of their streams; those of more frames are kept for `advance`."""
        batch, grid = len(text_BP), self._engine.layout.grid
        num_given = 0 if given_BTHW is None else given_BTHW.shape[1]
        fits = num_given <= min(grid[0], self._engine.view.history_frames)
        if not fits and not self._engine.view.bounded:
            raise UserError(f"{num_given} given latent frames; its layout has room for {grid[0]}")
        codes = np.zeros((batch, *grid), np.int32)
        if fits and num_given:
            codes[:, :num_given] = given_BTHW
        self._text, self._begins = (jnp.asarray(text_BP), jnp.asarray(text_length_B)), True
        num_planned = max([num_given, *(np.shape(x)[1] for x in streams)])
        self._planned = self._streams(streams, num_planned) if num_planned or streams else ()
        of_frames = tuple(x[:, :num_given] for x in self._planned)
        self.state = self._programs.prefill(num_given if fits else 0)(
            self.params, *self._text, codes, keys_B, self._laid_out(of_frames if fits else (), batch)
        )
        self.frame = num_given
        self._cut = 0
        self._made = {
            f: _Made(jnp.asarray(given_BTHW[:, f]).reshape(batch, -1), 0, tuple(x[:, f] for x in of_frames))
            for f in range(num_given)
        }
        if not fits:  # those that are seen alone
            group = jnp.int32(num_given * self._engine.groups.per_frame)
            self.state = self.state._replace(first=group, group=group)
            self.recache()

    def advance(self, streams=()) -> jax.Array:
        """Generate the next latent frame; return its codes, int32 [B, H, W], without waiting for them.

        streams: the codes [B, tokens] of each stream beside the video (the action that leads to the frame); by default those that
        `prefill` was given for it.
        """
        if self.state is None:
            raise UserError("a session begins with prefill")
        if not self._engine.view.bounded and self.frame >= self._engine.layout.grid[0]:
            raise UserError(
                f"the cache 'full' ends at {self._engine.layout.grid[0]} latent frames; use config.generate.cache=slot('window', ...) or "
                "'fifo' for longer videos"
            )
        if not streams and all(self.frame < x.shape[1] for x in self._planned):
            streams = [x[:, self.frame] for x in self._planned]
        of_frame = tuple(x[:, 0] for x in self._streams([np.asarray(x)[:, None] for x in streams], 1))
        program = self._programs.first_frame if self._begins else self._programs.next_frame
        self.state, codes = program(self.params, self.state, of_frame)
        return self.codes(self.took(codes, of_frame))

    def took(self, codes_BP: jax.Array, streams: tuple[jax.Array, ...] = ()) -> int:
        """Note the codes [B, H * W] of the next frame, which was made of `state`; return its number."""
        number = self.frame
        self._made[number] = _Made(codes_BP, self._cut, streams)
        self.frame, self._begins = self.frame + 1, False
        if self._engine.view.bounded:
            frames = np.array(list(self._made))
            needed = self._seen() | (frames >= self.frame - self._engine.view.history_frames)
            self._made = {f: self._made[f] for f in frames[needed].tolist()}
        return number

    def frames(self, num: int) -> Iterator[np.ndarray]:
        """Yield the codes of the next `num` frames, each when it is there; the next one is computed meanwhile."""
        ahead: deque[jax.Array] = deque()
        for _ in range(num):
            ahead.append(self.advance())
            if len(ahead) > 1:
                yield np.asarray(ahead.popleft())
        while ahead:
            yield np.asarray(ahead.popleft())

    # Events ---------------------------------------------------------------------------------------------------------

    def switch(self, text_BP, text_length_B, how: str = "recache", *, last: int = 1) -> None:
        """Go on with another prompt.

        how: "keep" leaves the frames as they were computed under the old prompt; "recache" computes those that are seen again
        under the new one (LongLive, arXiv 2509.22622 section 3.2); "flush" forgets all but the sink and the `last` frames
        (Infinity-RoPE's KV flush).
        """
        if how not in SWITCHES:
            raise UserError(f"switch how={how!r}; allowed: {', '.join(SWITCHES)}")
        if last < 0:
            raise UserError(f"switch last={last} must be at least 0 frames")
        self._refuse_in_flight("a prompt is switched")
        if how != "recache":
            self._refuse_sums(f"switch how={how!r}")
        self._text = jnp.asarray(text_BP), jnp.asarray(text_length_B)
        if how == "recache":
            self.recache()
            return
        state = self.state
        if how == "flush":
            keep = self._seen_frames(
                state, lambda frame: (frame < self._engine.settings.cache.num_sink) | (frame >= self.frame - last)
            )
            state = state._replace(cache=self._programs.gather(state.cache, keep))
        self.state = self._programs.new_text(self.params, state, *self._text)

    def recache(self) -> None:
        """Compute the keys and values of all frames that are seen again, under the current prompt, as a new session would."""
        self._refuse_in_flight("the history is computed again")
        engine, frames = self._engine, np.array(list(self._made), int)[self._seen()].tolist()
        if (
            frames
            and frames[-1] - frames[0] >= len(frames)
            and any(isinstance(r, rule.Window) for r in engine.rule.layers())
        ):
            raise UserError(
                "a sink apart from the window cannot be computed again under config.sequence.attention='window', which counts the frames "
                "between them; use a cache without a sink, or attention='causal'"
            )
        if len(frames) < self.frame:
            self._refuse_sums("recache behind dropped frames")
        if len(frames) > engine.layout.grid[0]:
            raise UserError(f"{len(frames)} frames are seen, but the session's layout has {engine.layout.grid[0]}")
        batch, grid = len(self._text[0]), engine.layout.grid
        codes = jnp.zeros((batch, *grid), jnp.int32)
        for i, f in enumerate(frames):
            codes = codes.at[:, i].set(self._made[f].codes.reshape(batch, *grid[1:]))
        numbers, cuts = (jnp.asarray(x, jnp.int32) for x in (frames, [self._made[f].cut for f in frames]))
        streams = [jnp.stack(x, axis=1) for x in zip(*(self._made[f].streams for f in frames))]
        program = self._programs.recache(len(frames))
        self.state = program(self.params, self.state, *self._text, codes, self._laid_out(streams, batch), numbers, cuts)

    def cut(self, frames: int | None = None) -> None:
        """Begin a new scene: what follows stands `frames` latent frames later in time (Infinity-RoPE's RoPE cut).

        By default as many as the cache policy says.
        """
        if self.state is None:
            raise UserError("a session begins with prefill")
        frames = self._engine.settings.cache.shot_offset if frames is None else frames
        if frames is None:
            raise UserError(
                f"cut needs a number of frames, which the cache {self._engine.settings.cache.name!r} does not say"
            )
        self._cut += frames
        self.state = self.state._replace(cut=jnp.int32(self._cut))

    def rewind(self, frames: int) -> None:
        """Take the last frames back: what follows is as if they had not been.

        Under a bounded cache only as many as `Engine.undo`, for which older frames are kept.
        """
        self._refuse_in_flight("frames are taken back")
        if self._engine.settings.search.is_on:
            raise UserError(
                "a search counts the log-probabilities of all frames: fork the session instead of taking frames back"
            )
        self._refuse_sums("rewind")
        if not self._engine.in_place:
            raise UserError(
                "codes that are predicted by earlier ones cannot be taken back; fork the session before, and go on from there"
            )
        most = self.frame if self.most_rewind is None else min(self.frame, self.most_rewind)
        if not 0 <= frames <= most:
            raise UserError(
                f"rewind by {frames} frames; allowed: 0 to {most} (a bounded cache keeps `undo` more frames)"
            )
        if not frames:
            return
        target, state = self.frame - frames, self.state
        keep = self._seen_frames(state, lambda frame: frame < target)
        group = jnp.int32(target * self._engine.groups.per_frame)
        newest_BP, groups = jnp.full_like(state.newest_BP, -1), self._engine.groups
        if target:
            groups_W = group - groups.per_frame + np.arange(groups.per_frame)
            codes_BP = self._made[target - 1].codes
            newest_BP = self._engine.passes.remember(
                newest_BP, groups_W, codes_BP[:, groups.places[groups.row(groups_W)]]
            )
        self.state = state._replace(cache=self._programs.gather(state.cache, keep), group=group, newest_BP=newest_BP)
        self._made = {f: made for f, made in self._made.items() if f < target}
        self.frame = target

    def fork(self, rows: Sequence[int], keys_B=None) -> Session:
        """Return a session whose rows go on from these rows; with other random keys, where they are given."""
        self._refuse_in_flight("a session is forked")
        other = copy.copy(self)
        index_B = jnp.asarray(rows, jnp.int32)
        other.state = self._programs.rows(self.state, index_B)
        if keys_B is not None:
            other.state = other.state._replace(keys_B=keys_B)
        other._text = tuple(x[index_B] for x in self._text)
        take = lambda x: x[index_B]
        other._planned = tuple(map(take, self._planned))
        other._made = {f: _Made(take(m.codes), m.cut, tuple(map(take, m.streams))) for f, m in self._made.items()}
        return other

    def save(self, path: str | Path) -> None:
        """Write everything that goes on to one file."""
        leaves = jax.tree.leaves(self.state._replace(keys_B=jax.random.key_data(self.state.keys_B)))
        arrays = {
            f"state_{i}": np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
            for i, x in enumerate(leaves)
        }
        frames, (text, length) = sorted(self._made), self._text
        facts = {"frame": self.frame, "begins": self._begins, "cut": self._cut, "text": text, "text_length": length}
        made = [self._made[f] for f in frames]
        facts |= {"frames": frames, "cuts": [m.cut for m in made]}
        facts |= {"codes": np.stack([m.codes for m in made])} if frames else {}
        facts |= {f"stream_{i}": np.stack(x) for i, x in enumerate(zip(*(m.streams for m in made)))}
        partial = Path(f"{path}.{os.getpid()}.partial")
        with open(partial, "wb") as file:
            np.savez(file, **facts, **arrays)
        os.replace(partial, path)

    def restore(self, path: str | Path) -> None:
        """Go on from a saved file, bit for bit. The engine and the parameters must be the same. Raises UserError."""
        try:
            arrays = dict(np.load(path))
            text = arrays["text"], arrays["text_length"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a saved session: {error}") from error
        keys_B = jax.random.split(jax.random.key(0), len(text[0]))
        shapes = jax.eval_shape(
            self._programs.prefill(0),
            self.params,
            *text,
            np.zeros((len(text[0]), *self._engine.layout.grid), np.int32),
            keys_B,
            self._laid_out([], len(text[0])),
        )
        shapes = shapes._replace(keys_B=jax.eval_shape(jax.random.key_data, keys_B))
        leaves, tree = jax.tree.flatten(shapes)
        saved = [arrays.get(f"state_{i}") for i in range(len(leaves))]
        if any(x is None or x.shape != leaf.shape for x, leaf in zip(saved, leaves)):
            raise UserError(f"{path} was saved by a session of another model, cache or batch")
        state = jax.tree.unflatten(tree, [jnp.asarray(x, leaf.dtype) for x, leaf in zip(saved, leaves)])
        self.state = state._replace(keys_B=jax.random.wrap_key_data(state.keys_B))
        self._text, self.frame = tuple(map(jnp.asarray, text)), int(arrays["frame"])
        self._begins, self._cut = bool(arrays["begins"]), int(arrays["cut"])
        streams = [
            arrays[f"stream_{i}"] for i in range(len(self._engine.layout.stream_index)) if f"stream_{i}" in arrays
        ]
        made = zip(arrays["frames"].tolist(), arrays.get("codes", ()), arrays["cuts"].tolist())
        self._made = {
            f: _Made(jnp.asarray(codes), cut, tuple(jnp.asarray(x[i]) for x in streams))
            for i, (f, codes, cut) in enumerate(made)
        }

    def codes(self, frame: int) -> jax.Array:
        """Return the codes of a finished frame that is still remembered, int32 [B, H, W]."""
        return self._made[frame].codes.reshape(-1, *self._engine.layout.grid[1:])

    @property
    def width(self) -> int:
        """How many frames are in flight together."""
        return self._engine.width

    def make_frame(self, params, state: State, streams=()) -> tuple[State, jax.Array]:
        """Make a latent frame behind the first one from a state, with the codes [B, tokens] of its streams; return the state behind it,
        and codes [B, H * W]. To be compiled."""
        return self._programs.make_frame(params, state, streams)

    @property
    def num_bytes(self) -> int:
        """Memory of the cache."""
        return self.state.cache.num_bytes

    @property
    def most_rewind(self) -> int | None:
        """How many frames can be taken back at a time; None = all."""
        return self._engine.undo if self._engine.view.bounded else None

    @property
    def keys_B(self) -> jax.Array:
        """The random keys of the rows."""
        return self.state.keys_B

    @property
    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the prompts [B, P], and their lengths [B]."""
        return np.asarray(self._text[0]), np.asarray(self._text[1])

    @property
    def log_p(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities of the codes drawn since the prefill [B], and those without the text, if guidance has such a branch."""
        log_p = [np.asarray(x) for x in self.state.log_p]
        lack = [i for i, branch in enumerate(self._engine.view.branches) if branch.drop == {"text"}]
        return log_p[0], log_p[lack[0]] if lack else None

    @property
    def num_forwards(self) -> int:
        """How often the model was run for frames since the prefill."""
        return int(self.state.forwards)

    @property
    def num_programs(self) -> int:
        """How many programs were compiled for frames: those of the first one and of later ones."""
        return self._programs.num_frame_programs

    def _seen(self) -> np.ndarray:
        """Return which of the frames whose codes are kept the next frame sees, bool [frames]."""
        cuts = np.array([made.cut for made in self._made.values()], int)
        return self._engine.settings.cache.sees(np.array(list(self._made), int), self.frame, cuts)

    def _seen_frames(self, state: State, keep) -> jax.Array:
        """Return which slots hold text, or a frame that `keep` is true of, bool [S]."""
        frame_S = self._engine.view.frames(state.cache.tokens, state.cache.used_S)
        return state.cache.used_S & ((frame_S < 0) | keep(frame_S))

    def _streams(self, streams, num_frames: int) -> tuple[jax.Array, ...]:
        """Return the codes [B, frames, tokens] of all streams as arrays, if they are those of the layout. Raises UserError."""
        want = [
            (size, index.shape[1])
            for size, index in zip(self._engine.layout.vocabulary.stream_sizes, self._engine.layout.stream_index)
        ]
        got = [np.asarray(x, np.int32) for x in streams]
        shapes = [(len(self._text[0]), num_frames, num) for _, num in want]
        if [x.shape for x in got] != shapes or any(x.min() < 0 or x.max() >= size for x, (size, _) in zip(got, want)):
            raise UserError(
                f"streams of shapes {[x.shape for x in got]}; this model has {len(want)} of (rows, frames, tokens) {shapes}, with codes "
                f"below {[size for size, _ in want]}"
            )
        return tuple(map(jnp.asarray, got))

    def _laid_out(self, streams, batch: int) -> tuple[jax.Array, ...]:
        """Return the codes of streams for all frames of the layout, 0 behind those that are given."""
        num_frames, tables = self._engine.layout.grid[0], self._engine.layout.stream_index
        streams = streams or [jnp.zeros((batch, 0, table.shape[1]), jnp.int32) for table in tables]
        return tuple(jnp.pad(x, ((0, 0), (0, num_frames - x.shape[1]), (0, 0))) for x in streams)

    def _refuse_sums(self, what: str) -> None:
        if LINEAR in self._engine.model_config.mixer.kinds:
            raise UserError(
                f"{what}: layers with linear attention keep sums, from which nothing can be taken back; fork the session before"
            )

    def _refuse_in_flight(self, what: str) -> None:
        if self.state is None:
            raise UserError("a session begins with prefill")
        if self._engine.width > 1:
            raise UserError(
                f"{self._engine.width} frames are in flight together, so none is finished when {what}: use the plan 'one_by_one'"
            )
