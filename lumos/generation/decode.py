"""Frame-by-frame masked decoding in one compiled program: prefill, then a scan over frames over a scan over steps.

Every frame: start fully masked; `steps` times predict, draw, keep the confident part; then run the finished frame
once more with the history mask applied and keep the keys and values of that partly masked frame (Lumos-1 section
3.4: history must look as it did in training). The cache stores keys before rotation; they are rotated once a frame.

Mode "reference" is the released Lumos-1 sampler with its departures from the paper: the temperature shrinks
cumulatively over steps and frames (so that only the first frame sees noise), given frames keep all their tokens, and
ratio 0 still masks one history cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import GenerateConfig
from lumos.generation import order, sampler
from lumos.model.definition import Definition
from lumos.model.transformer import Past, rotate_cache
from lumos.sequence.attention import KeyRange, layout_range, range_end
from lumos.sequence.layout import Layout, Positions


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """Static choices of one program; call it under jit (`num_given` static)."""

    definition: Definition
    layout: Layout
    config: GenerateConfig
    chunk: int = 1024
    use_cache: bool = True  # False recomputes the whole sequence at every step: the slow reference of the benchmark
    num_codes: int = 0  # of the codebook; 0 = as many as the vocabulary has
    # Recorded uniform numbers instead of random ones: see sampler.recorded.
    uniform: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int):
        """Return codes int32 [B, T, H, W]; the first `num_given` latent frames of `given_BTHW` are kept.

        Every row draws with a random key of its own; where one key is given instead of [B], that of row i is folded with i.
        """
        if not keys_B.ndim:
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(keys_B, jnp.arange(len(text_BP)))
        layout, guided = self.layout, self.config.guidance != 1.0
        model = self.definition.bind(params)
        first_B = layout.first_key(text_length_B)
        ids_BL = layout.assemble(text_BP, given_BTHW)
        # Under guidance the second half of the batch is the same rows without their text.
        rows = jnp.tile(ids_BL, (2, 1)) if guided else ids_BL
        first_R = jnp.concatenate([first_B, jnp.full_like(first_B, layout.drop_to)]) if guided else first_B
        past = _Cached(self, model, first_R) if self.use_cache else _Recomputed(self, model, first_R)
        state = past.prefill(rows if self._is_reference else self._forget(rows, num_given), num_given)
        head_DV = model.head(*self._visual)

        def frame(carry, slices):
            (f, temperatures_S), (state, ids_BL) = slices, carry
            block_BQ = self._block(ids_BL, f)
            noise = lambda step: self._noise(keys_B, f, num_given, step, head_DV.shape[1])
            codes_BJ = self._decode_frame(past, state, head_DV, block_BQ, f, temperatures_S, noise)
            block_BQ = self._with_codes(block_BQ, codes_BJ, jnp.ones_like(codes_BJ, bool))
            ids_BL = jax.lax.dynamic_update_slice_in_dim(ids_BL, block_BQ, self._start(f), axis=1)
            history = jnp.where(self._history_Q, layout.vocabulary.mask, block_BQ)
            return (past.commit(state, self._rows(history), f), ids_BL), None

        frames = jnp.arange(num_given, layout.grid[0])
        (_, ids_BL), _ = jax.lax.scan(frame, (state, ids_BL), (frames, self._temperatures(len(frames))))
        return layout.codes(ids_BL)

    def _decode_frame(self, past, state, head_DV, block_BQ, f, temperatures_S, noise):
        """Unmask one frame; return its codes [B, cells]."""
        c, num_cells = self.config, len(self._cells)
        seen = past.open(state, f)
        if self._is_reference:
            draw, keep, counts = sampler.reference_draw, sampler.reference_keep, order.reference_targets
        else:
            draw, keep, counts = sampler.draw, sampler.keep_confident, order.cosine

        def step(carry, slices):
            codes_BJ, known_BJ = carry
            index, count, temperature = slices
            ids_BQ = self._with_codes(block_BQ, codes_BJ, known_BJ)
            hidden = past.hidden(seen, self._rows(ids_BQ), f)[:, self._cells]
            step_noise = noise(index)
            drawn, log_p = draw(step_noise, hidden, head_DV, guidance=c.guidance, top_k=c.top_k, chunk=self.chunk)
            codes_BJ = jnp.where(known_BJ, codes_BJ, drawn)
            return (codes_BJ, keep(step_noise, log_p, known_BJ, count, temperature)), None

        shape = (block_BQ.shape[0], num_cells)
        init = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))
        slices = (jnp.arange(c.steps), jnp.asarray(counts(num_cells, c.steps)), temperatures_S)
        (codes_BJ, _), _ = jax.lax.scan(step, init, slices)
        return codes_BJ

    @property
    def _is_reference(self):
        return self.config.mode == "reference"

    def _temperatures(self, num_frames: int) -> jax.Array:
        """Return the temperature of each step of each generated frame, [frames, steps]."""
        remaining = 1.0 - np.arange(1, self.config.steps + 1) / self.config.steps
        if self._is_reference:
            shrinking = self.config.temperature * np.cumprod(np.tile(remaining, num_frames))
            return jnp.asarray(shrinking.reshape(num_frames, -1), jnp.float32)
        return jnp.broadcast_to(
            jnp.asarray(self.config.temperature * remaining, jnp.float32), (num_frames, len(remaining))
        )

    def _noise(self, keys_B, f, num_given, step, num_codes) -> sampler.Noise:
        if self.uniform is not None:
            return sampler.recorded(self.uniform, (len(keys_B), len(self._cells), num_codes), f - num_given, step)
        fold_in = jax.vmap(jax.random.fold_in, (0, None))
        return sampler.seeded(fold_in(fold_in(keys_B, f), step), len(self._cells))

    @property
    def _visual(self):
        """The ids that are drawn from: those of the codebook, where the vocabulary has room for more."""
        start, end = self.layout.vocabulary.visual_start, self.layout.vocabulary.visual_end
        return start, min(end, start + self.num_codes) if self.num_codes else end

    @property
    def _cells(self):
        """Offsets of the codes inside a frame block."""
        rows, columns = self.layout.grid[1:]
        return self.layout.visual_index[: rows * columns] - self.layout.prefix_length

    @property
    def _history_Q(self):
        offsets = self.layout.content_index[0] - self.layout.prefix_length
        masked = order.history_mask(len(offsets), self.config.history_ratio, always=self._is_reference)
        return jnp.zeros(self.layout.frame_length, bool).at[offsets].set(masked)

    def _forget(self, ids_RL, num_given):
        """Apply the history mask to the given frames."""
        index = self.layout.content_index[:num_given].reshape(-1)
        masked = jnp.tile(
            jnp.asarray(order.history_mask(self.layout.content_index.shape[1], self.config.history_ratio)), num_given
        )
        return ids_RL.at[:, index].set(jnp.where(masked, self.layout.vocabulary.mask, ids_RL[:, index]))

    def _start(self, f):
        return self.layout.prefix_length + f * self.layout.frame_length

    def _block(self, ids_BL, f):
        return jax.lax.dynamic_slice_in_dim(ids_BL, self._start(f), self.layout.frame_length, axis=1)

    def _with_codes(self, block_BQ, codes_BJ, known_BJ):
        ids = jnp.where(known_BJ, codes_BJ + self.layout.vocabulary.visual_start, self.layout.vocabulary.mask)
        return block_BQ.at[:, self._cells].set(ids)

    def _rows(self, ids):
        return jnp.tile(ids, (2, 1)) if self.config.guidance != 1.0 else ids


def _row_positions(layout: Layout, first_R) -> Positions:
    """Return positions [R, L] that count from the first visible token of each row, as if it stood there alone.

    Attention depends on differences only, but float32 angles far from 0 are coarse: so the arithmetic is that of a
    sequence without padding, and the unconditional rows start at 0 like the sequences they were trained as.
    """
    *places, is_content = (jnp.asarray(a) for a in layout.positions)
    shifted = (a - first_R[:, None] for a in places)
    return Positions(*shifted, jnp.broadcast_to(is_content, (len(first_R), layout.length)))


class _Cached:
    """History as keys and values of earlier tokens: state = (k before rotation, v), each [layers, R, S, K, A]."""

    def __init__(self, decoder: Decoder, model, first_R):
        self.decoder, self.layout, self.model, self.first_R = decoder, decoder.layout, model, first_R
        self.positions = _row_positions(self.layout, first_R)

    def prefill(self, ids_RL, num_given):
        length = int(self.layout.prefix_length + num_given * self.layout.frame_length)
        keys = layout_range(self.layout, self.first_R)
        keys = KeyRange(keys.start_BQ[:, :length], keys.end_BQ[:, :length])
        _, kv = self.model(ids_RL[:, :length], self.positions.at(slice(0, length)), keys)
        spare = self.layout.length - length
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0))), kv)

    def open(self, state, f) -> Past:
        k, v = state
        length = self.decoder.layout.frame_length
        keys = KeyRange(
            jnp.broadcast_to(self.first_R[:, None], (len(self.first_R), length)),
            jnp.broadcast_to(self.decoder._start(f), (1, length)),
        )
        return Past(rotate_cache(k, self.positions, self.model.config), v, keys)

    def _run(self, seen, ids_RQ, f):
        length = self.layout.frame_length
        start = self.decoder._start(f)
        positions = Positions(*(jax.lax.dynamic_slice_in_dim(a, start, length, axis=1) for a in self.positions))
        own = KeyRange(jnp.zeros((1, length), jnp.int32), jnp.full((1, length), length, jnp.int32))
        return self.model(ids_RQ, positions, own, seen)

    def hidden(self, seen, ids_RQ, f):
        return self._run(seen, ids_RQ, f)[0]

    def commit(self, state, ids_RQ, f):
        _, own_kv = self._run(self.open(state, f), ids_RQ, f)
        start = self.decoder._start(f)
        return jax.tree.map(lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, start, axis=2), state, own_kv)


class _Recomputed:
    """History as token ids [R, L], run through the whole model at every step."""

    def __init__(self, decoder: Decoder, model, first_R):
        self.decoder, self.layout, self.model = decoder, decoder.layout, model
        self.positions = _row_positions(self.layout, first_R)
        self.keys = KeyRange(
            first_R[:, None] + jnp.zeros((1, self.layout.length), jnp.int32),
            jnp.asarray(range_end(self.layout.group))[None],
        )

    def prefill(self, ids_RL, num_given):
        return ids_RL

    def open(self, state, f):
        return state

    def hidden(self, seen, ids_RQ, f):
        ids_RL = self.commit(seen, ids_RQ, f)
        return self.decoder._block(self.model.hidden(ids_RL, self.positions, self.keys), f)

    def commit(self, state, ids_RQ, f):
        return jax.lax.dynamic_update_slice_in_dim(state, ids_RQ, self.decoder._start(f), axis=1)
