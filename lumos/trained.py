"""A trained model, ready to use: what `lumos.load` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lumos import sharding
from lumos.config import GenerateConfig
from lumos.errors import UserError
from lumos.streaming.live import Live, Options
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import Generator, listed


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model predicts clips: teacher forcing, at a fixed mask where hidden codes predict themselves.

    nll: nats a code, float32 [B]. frame_nll: the same for each latent frame, float32 [B, T]; NaN where no code of a frame is
    predicted. accuracy: share of codes that are the likeliest, float32 [B].
    """

    nll: np.ndarray
    frame_nll: np.ndarray
    accuracy: np.ndarray


class Model(Generator):
    """A transformer with its text model and its tokenizer.

    Attributes:
      config: of the run.
      step: updates behind the weights.
      tokenizer: `encode` (uint8 [B, F, Y, X, 3] -> int32 [B, T, H, W]) and `decode`.
      frame_size: height and width in pixels.
    """

    def stream(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        num_frames: int = 0,
        given: np.ndarray | None = None,
        settings: GenerateConfig | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the frames of one clip per prompt as they are made, uint8 [B, F', Y, X, 3]: F' is 1 at first, then 4 at a time.

        The arguments are those of `generate`, and so are the clips, up to rounding in the decoder. Under a bounded cache
        (`generate.cache`) `num_frames` may be anything, and memory does not grow.

        Raises:
          UserError: a layout that is not made frame by frame, or more frames than the cache "full" has room for.
        """
        latent_frames, settings = self._latent_frames(num_frames), settings or self.config.generate
        if settings.search.is_on:
            raise UserError("a search chooses among whole clips, so there is nothing to stream: use generate")
        if given is not None and self.tokenizer.token_shape(*np.shape(given)[-4:-1])[0] >= latent_frames:
            raise UserError(f"{np.shape(given)[-4]} given frames are the whole clip; give fewer, or set num_frames")
        # Under the cache "full" there is nothing after the last frame that could be made ahead.
        options = Options(seed=seed, settings=settings, ahead=int(settings.cache.bounded))
        live = self.live(prompts, given=given, options=options)
        return (next(live).pixels for _ in range(latent_frames))

    def live(
        self, prompts: str | Sequence[str], *, given: np.ndarray | None = None, options: Options | None = None
    ) -> Live:
        """Return videos without an end, as `lumos stream` makes them: prompts switch, scenes cut, frames are taken back.

        Iterating gives pixels and codes of each latent frame. Under the cache "full" it ends at the trained length.
        """
        return Live(self, listed(prompts), given=given, options=options or Options())

    def score(self, video: np.ndarray, prompt: str | Sequence[str], *, mask_ratio: float | None = None) -> Score:
        """Return how well the model predicts clips given their prompts. A clip's score depends on that clip alone.

        Args:
          video: uint8 [F, Y, X, 3] or [B, F, Y, X, 3], in the frame size of the model.
          prompt: one for all clips, or one for each.
          mask_ratio: share of the codes that is hidden (models that predict hidden codes); by default `evaluate.mask_ratio`.

        Raises:
          UserError: another frame size, more frames than the model was trained on, or another number of prompts.
        """
        videos = np.reshape(video, (-1, *np.shape(video)[-4:]))
        prompts = [prompt] * len(videos) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(videos):
            raise UserError(f"{len(videos)} clips but {len(prompts)} prompts; give one for all, or one for each")
        ratio = self.config.evaluate.mask_ratio if mask_ratio is None else mask_ratio
        if not 0 < ratio <= 1:
            raise UserError(f"mask_ratio={ratio} must be above 0 and at most 1")
        sums = [self._score(clip, text, ratio) for clip, text in zip(videos, prompts)]
        nll_BT, correct_BT, count_BT = (np.stack([part[name] for part in sums]) for name in ("nll", "correct", "count"))
        count_B = count_BT.sum(1)
        with np.errstate(invalid="ignore"):
            return Score(nll_BT.sum(1) / count_B, nll_BT / count_BT, correct_BT.sum(1) / count_B)

    def _score(self, clip_FYXC: np.ndarray, prompt: str, ratio: float) -> dict[str, np.ndarray]:
        """Return sums over the codes of each latent frame of one clip, [T]."""
        tokens_BTHW, grid = self.tokenizer.encode(clip_FYXC[None]), self.config.sequence.grid
        if tokens_BTHW.shape[2:] != grid[1:] or tokens_BTHW.shape[1] > grid[0]:
            raise UserError(
                f"clips of {clip_FYXC.shape[:3]} (frames, height, width) give tokens {tokens_BTHW.shape[1:]}; the model scores at most "
                f"{grid}: {self.frame_size} pixels"
            )
        text, length = self.encode_prompts([prompt], tokens_BTHW.shape[1])
        # As many copies as the mesh splits a batch into; the mask of the first row is the same in every batch.
        copies = 1 if self.mesh is None else sharding.num_batch_shards(self.mesh)
        batch = {"tokens": tokens_BTHW, "text": text, "text_length": length}
        batch = {name: np.repeat(value, copies, axis=0) for name, value in batch.items()}
        objective = self.remember("score", lambda: TransformerObjective(self.config))
        program = self.remember("score program", lambda: jax.jit(objective.evaluate_rows))
        with self.in_mesh():
            rows = program(self.params, self._put(batch), ratio)
        return {name: np.asarray(value[0])[: tokens_BTHW.shape[1]] for name, value in jax.device_get(rows).items()}
