"""A video that goes on: frame by frame, as long as wanted, with prompts that change, cuts, forks and steps back.

A session runs a program for its first frame and one for all later ones, whatever the length of the video. Under a bounded
cache policy its memory does not grow. Nothing waits for the device but who reads a frame.
"""

from __future__ import annotations

import copy
import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.errors import UserError
from lumos.generation.engine import Engine, State
from lumos.generation.policy import keep_index
from lumos.model.mixer import LINEAR
from lumos.sequence import rule

SWITCHES = ("keep", "recache", "flush")


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
        self._engine, self.params, self._programs = engine, params, _Programs(engine)
        self._state: State | None = None
        self._text: tuple[jax.Array, jax.Array] | None = None  # of the prompt: ids [B, P], lengths [B]
        # Codes [B, H * W] and cut by frame number: what encoding the history again may need.
        self._made: dict[int, tuple[jax.Array, int]] = {}
        self._cut = 0  # latent frames that what comes stands later
        self.frame = 0

    def prefill(self, text_BP, text_length_B, keys_B, given_BTHW=None) -> None:
        """Begin: text ids right-aligned [B, P], their lengths [B], a random key for each row [B], first frames if any."""
        batch, grid = len(text_BP), self._engine.layout.grid
        num_given = 0 if given_BTHW is None else given_BTHW.shape[1]
        fits = num_given <= min(grid[0], self._engine.view.history_frames)
        if not fits and not self._engine.view.bounded:
            raise UserError(f"{num_given} given latent frames; its layout has room for {grid[0]}")
        codes = np.zeros((batch, *grid), np.int32)
        if fits and num_given:
            codes[:, :num_given] = given_BTHW
        self._text, self._begins = (jnp.asarray(text_BP), jnp.asarray(text_length_B)), True
        self._state = self._programs.prefill(num_given if fits else 0)(self.params, *self._text, codes, keys_B)
        self.frame = num_given
        self._cut = 0
        self._made = {f: (jnp.asarray(given_BTHW[:, f]).reshape(batch, -1), 0) for f in range(num_given)}
        if not fits:  # those that are seen alone
            group = jnp.int32(num_given * self._engine.groups.per_frame)
            self._state = self._state._replace(first=group, group=group)
            self.recache()

    def advance(self) -> jax.Array:
        """Generate the next latent frame; return its codes, int32 [B, H, W], without waiting for them."""
        if self._state is None:
            raise UserError("a session begins with prefill")
        if not self._engine.view.bounded and self.frame >= self._engine.layout.grid[0]:
            raise UserError(
                f"the cache 'full' ends at {self._engine.layout.grid[0]} latent frames; use config.generate.cache=slot('window', ...) or "
                "'fifo' for longer videos"
            )
        program = self._programs.first_frame if self._begins else self._programs.next_frame
        self._state, codes = program(self.params, self._state)
        self._made[self.frame] = codes, self._cut
        self.frame, self._begins = self.frame + 1, False
        if self._engine.view.bounded:
            frames = np.array(list(self._made))
            needed = self._seen() | (frames >= self.frame - self._engine.view.history_frames)
            self._made = {f: self._made[f] for f in frames[needed].tolist()}
        return codes.reshape(-1, *self._engine.layout.grid[1:])

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
        state = self._state
        if how == "flush":
            keep = self._seen_frames(
                state, lambda frame: (frame < self._engine.settings.cache.num_sink) | (frame >= self.frame - last)
            )
            state = state._replace(cache=self._programs.gather(state.cache, keep))
        self._state = self._programs.new_text(self.params, state, *self._text)

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
            codes = codes.at[:, i].set(self._made[f][0].reshape(batch, *grid[1:]))
        numbers, cuts = (jnp.asarray(x, jnp.int32) for x in (frames, [self._made[f][1] for f in frames]))
        program = self._programs.recache(len(frames))
        self._state = program(self.params, self._state, *self._text, codes, numbers, cuts)

    def cut(self, frames: int | None = None) -> None:
        """Begin a new scene: what follows stands `frames` latent frames later in time (Infinity-RoPE's RoPE cut).

        By default as many as the cache policy says.
        """
        if self._state is None:
            raise UserError("a session begins with prefill")
        frames = self._engine.settings.cache.shot_offset if frames is None else frames
        if frames is None:
            raise UserError(
                f"cut needs a number of frames, which the cache {self._engine.settings.cache.name!r} does not say"
            )
        self._cut += frames
        self._state = self._state._replace(cut=jnp.int32(self._cut))

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
        target, state = self.frame - frames, self._state
        keep = self._seen_frames(state, lambda frame: frame < target)
        group = jnp.int32(target * self._engine.groups.per_frame)
        newest_BP, groups = jnp.full_like(state.newest_BP, -1), self._engine.groups
        if target:
            groups_W = group - groups.per_frame + np.arange(groups.per_frame)
            codes_BP = self._made[target - 1][0]
            newest_BP = self._engine.passes.remember(
                newest_BP, groups_W, codes_BP[:, groups.places[groups.row(groups_W)]]
            )
        self._state = state._replace(cache=self._programs.gather(state.cache, keep), group=group, newest_BP=newest_BP)
        self._made = {f: made for f, made in self._made.items() if f < target}
        self.frame = target

    def fork(self, rows: Sequence[int], keys_B=None) -> Session:
        """Return a session whose rows go on from these rows; with other random keys, where they are given."""
        self._refuse_in_flight("a session is forked")
        other = copy.copy(self)
        index_B = jnp.asarray(rows, jnp.int32)
        other._state = self._programs.rows(self._state, index_B)
        if keys_B is not None:
            other._state = other._state._replace(keys_B=keys_B)
        other._text = tuple(x[index_B] for x in self._text)
        other._made = {f: (codes[index_B], cut) for f, (codes, cut) in self._made.items()}
        return other

    def save(self, path: str | Path) -> None:
        """Write everything that goes on to one file."""
        leaves = jax.tree.leaves(self._state._replace(keys_B=jax.random.key_data(self._state.keys_B)))
        arrays = {
            f"state_{i}": np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
            for i, x in enumerate(leaves)
        }
        frames, (text, length) = sorted(self._made), self._text
        facts = {"frame": self.frame, "begins": self._begins, "cut": self._cut, "text": text, "text_length": length}
        facts |= {"frames": frames, "cuts": [self._made[f][1] for f in frames]}
        facts |= {"codes": np.stack([self._made[f][0] for f in frames])} if frames else {}
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
        )
        shapes = shapes._replace(keys_B=jax.eval_shape(jax.random.key_data, keys_B))
        leaves, tree = jax.tree.flatten(shapes)
        saved = [arrays.get(f"state_{i}") for i in range(len(leaves))]
        if any(x is None or x.shape != leaf.shape for x, leaf in zip(saved, leaves)):
            raise UserError(f"{path} was saved by a session of another model, cache or batch")
        state = jax.tree.unflatten(tree, [jnp.asarray(x, leaf.dtype) for x, leaf in zip(saved, leaves)])
        self._state = state._replace(keys_B=jax.random.wrap_key_data(state.keys_B))
        self._text, self.frame = tuple(map(jnp.asarray, text)), int(arrays["frame"])
        self._begins, self._cut = bool(arrays["begins"]), int(arrays["cut"])
        made = zip(arrays["frames"].tolist(), arrays.get("codes", ()), arrays["cuts"].tolist())
        self._made = {int(f): (jnp.asarray(codes), int(cut)) for f, codes, cut in made}

    @property
    def num_bytes(self) -> int:
        """Memory of the cache."""
        return self._state.cache.num_bytes

    @property
    def most_rewind(self) -> int | None:
        """How many frames can be taken back at a time; None = all."""
        return self._engine.undo if self._engine.view.bounded else None

    @property
    def keys_B(self) -> jax.Array:
        """The random keys of the rows."""
        return self._state.keys_B

    @property
    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the prompts [B, P], and their lengths [B]."""
        return np.asarray(self._text[0]), np.asarray(self._text[1])

    @property
    def log_p(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities of the codes drawn since the prefill [B], and those without the text, if guidance has such a branch."""
        log_p = [np.asarray(x) for x in self._state.log_p]
        lack = [i for i, branch in enumerate(self._engine.view.branches) if branch.drop == {"text"}]
        return log_p[0], log_p[lack[0]] if lack else None

    @property
    def num_forwards(self) -> int:
        """How often the model was run for frames since the prefill."""
        return int(self._state.forwards)

    @property
    def num_programs(self) -> int:
        """How many programs were compiled for frames: those of the first one and of later ones."""
        return sum(program._cache_size() for program in {self._programs.first_frame, self._programs.next_frame})

    def _seen(self) -> np.ndarray:
        """Return which of the frames whose codes are kept the next frame sees, bool [frames]."""
        cuts = np.array([cut for _, cut in self._made.values()], int)
        return self._engine.settings.cache.sees(np.array(list(self._made), int), self.frame, cuts)

    def _seen_frames(self, state: State, keep) -> jax.Array:
        """Return which slots hold text, or a frame that `keep` is true of, bool [S]."""
        frame_S = self._engine.view.frames(state.cache.tokens, state.cache.used_S)
        return state.cache.used_S & ((frame_S < 0) | keep(frame_S))

    def _refuse_sums(self, what: str) -> None:
        if LINEAR in self._engine.model_config.mixer.kinds:
            raise UserError(
                f"{what}: layers with linear attention keep sums, from which nothing can be taken back; fork the session before"
            )

    def _refuse_in_flight(self, what: str) -> None:
        if self._state is None:
            raise UserError("a session begins with prefill")
        if self._engine.width > 1:
            raise UserError(
                f"{self._engine.width} frames are in flight together, so none is finished when {what}: use the plan 'one_by_one'"
            )


class _Programs:
    """The compiled programs of a session, shared by its forks."""

    def __init__(self, engine: Engine):
        first, later = engine.rounds
        self._engine = engine
        self.first_frame = jax.jit(functools.partial(_frame, engine, first, later))
        self.next_frame = (
            jax.jit(functools.partial(_frame, engine, later, later)) if len(first) != len(later) else self.first_frame
        )
        self.prefill = functools.cache(self._prefill)
        self.recache = functools.cache(self._recache)
        self.gather = jax.jit(lambda cache, keep_S: cache.gather(keep_index(keep_S)))
        self.new_text = jax.jit(functools.partial(_new_text, engine))
        self.rows = jax.jit(functools.partial(_rows, engine))

    def _prefill(self, num_given: int):
        return jax.jit(
            lambda params, text, length, codes, keys: self._engine.prefill(params, text, length, codes, keys, num_given)
        )

    def _recache(self, num_frames: int):
        return jax.jit(functools.partial(_recache, self._engine, num_frames))


def _frame(engine: Engine, first: np.ndarray, later: np.ndarray, params, state: State) -> tuple[State, jax.Array]:
    """Generate the groups of one latent frame; return its codes in raster order, [B, H * W]."""
    parts = []
    for i in range(engine.groups.per_frame // engine.at_once):
        state, codes_BC = engine.next_group(params, state, later if i else first)
        parts.append(codes_BC)
    # Every process of a run reads them.
    return state, sharding.constrain(engine.groups.frame_codes(jnp.concatenate(parts, axis=1)), (None, None))


def _new_text(engine: Engine, params, state: State, text_BP, text_length_B) -> State:
    """Put another prompt into the slots of the text."""
    first_R = engine.view.first_visible(text_length_B)
    ids_BL = engine.layout.assemble(text_BP, jnp.zeros((len(text_BP), *engine.layout.grid), jnp.int32))
    prefix, _ = engine.run_prefix(params, ids_BL, first_R, 0)
    return state._replace(cache=state.cache.with_text(prefix, engine.layout.prefix_length), first_R=first_R)


def _recache(
    engine: Engine, num_frames: int, params, state: State, text_BP, text_length_B, codes_BTHW, frames_F, cuts_F
) -> State:
    """Compute the history again: prompt and frames in one pass, as a prefill does."""
    first_R = engine.view.first_visible(text_length_B)
    ids_BL = engine.layout.assemble(text_BP, codes_BTHW)
    num_groups = num_frames * engine.groups.per_frame
    numbers = (frames_F, cuts_F) if num_frames else None
    cache, hidden = engine.run_prefix(params, ids_BL, first_R, num_groups, numbers)
    features = state.features_RND if engine.in_place else hidden[:, -engine.groups.size :]
    newest_BP = engine.passes.newest(engine.passes.prefix_ids(ids_BL, num_groups), num_groups)
    return state._replace(cache=cache, first_R=first_R, features_RND=features, newest_BP=newest_BP)


def _rows(engine: Engine, state: State, index_B) -> State:
    batch = len(state.keys_B)
    index_R = jnp.concatenate([index_B + i * batch for i in range(len(engine.view.branches))])
    return state._replace(
        cache=state.cache.rows(index_R),
        first_R=state.first_R[index_R],
        keys_B=state.keys_B[index_B],
        cells=jax.tree.map(lambda x: x[index_B], state.cells),
        newest_BP=state.newest_BP[index_B],
        features_RND=state.features_RND[index_R],
        log_p=jax.tree.map(lambda x: x[index_B], state.log_p),
    )
