"""What is evaluated: a generator with its settings, the prompts, and the clips that it makes for them, made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos.config import Config
from lumos.data.pipeline import make_pipeline
from lumos.data.rates import agree
from lumos.data.sources import manifest_fps
from lumos.errors import UserError
from lumos.training.match_data import token_manifests
from lumos.videos.generator import Generated, Generator


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video to look at. group: what it shows; seed: -1 where it was not generated."""

    group: str
    video: np.ndarray
    caption: str
    seed: int = -1


@dataclasses.dataclass(frozen=True)
class Continued:
    """True clips uint8 [B, F, Y, X, 3], their continuations [B, S, F, Y, X, 3], captions, and the seed of the first continuation."""

    truth: np.ndarray
    made: np.ndarray
    captions: list[str]
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A generator, the config of its tokenizer, the seed, and prompts; without prompts held-out ones are taken."""

    generator: Generator
    tokenizer_config: Config
    seed: int = 0
    prompts: tuple[str, ...] = ()

    @property
    def settings(self):
        return self.generator.config.evaluate

    @property
    def is_shapes(self) -> bool:
        """Whether the prompts are those of moving_shapes, which say what is to be seen."""
        return not self.prompts and self.tokenizer_config.data.source == "moving_shapes"

    @cached_property
    def shapes_prompts(self) -> list[Any]:
        from lumos.data import moving_shapes

        level, c = self.tokenizer_config.shapes.level, self.settings
        return moving_shapes.test_prompts(level, c.num_prompts, seed=self.seed, split=c.split)

    @cached_property
    def distinct(self) -> list[str]:
        """The prompts: those given, of moving_shapes, or of the evaluation split."""
        if self.prompts:
            return list(self.prompts)
        if self.is_shapes:
            return [prompt.caption for prompt in self.shapes_prompts]
        return [caption for _, captions in self.real_batches(self.settings.num_prompts) for caption in captions]

    @cached_property
    def captions(self) -> list[str]:
        """The prompt of each clip: every prompt `evaluate.samples_per_prompt` times."""
        return [prompt for prompt in self.distinct for _ in range(self.settings.samples_per_prompt)]

    def by_prompt(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the means over the samples of each prompt, [prompts, ...], of values of clips [N, ...].

        Samples of a prompt are alike: intervals are over prompts.
        """
        values = np.asarray(values, np.float64)
        return values.reshape(-1, self.settings.samples_per_prompt, *values.shape[1:]).mean(1)

    @cached_property
    def batches(self) -> list[Generated]:
        return list(self.generator.generate_batches(self.captions, seed=self.seed))

    @cached_property
    def generated(self) -> Generated:
        """The clips of the prompts."""
        videos, tokens = (
            np.concatenate([getattr(made, name) for made in self.batches]) for name in ("videos", "tokens")
        )
        return Generated(videos, tokens, sum(made.seconds for made in self.batches))

    @property
    def protocol(self) -> str:
        """What the generated clips are: their number, prompts, size, rate and seeds."""
        made, c = self.generated.videos, self.settings
        held_out = f"{'prompts' if self.is_shapes else 'captions of the first clips'} of split {c.split!r}"
        source = "given prompts" if self.prompts else held_out
        return f"{_count(made)} {self._rate} ({len(self.distinct)} {source}, {c.samples_per_prompt} of each), {self._seeds(len(made))}"

    @property
    def _rate(self) -> str:
        return f"at {self.generator.config.generate.fps:g} frames a second"

    def _seeds(self, num: int) -> str:
        return f"seeds {self.seed} to {self.seed + num - 1}"

    def real(self) -> np.ndarray:
        """Return clips of the evaluation split as they are compared, at most as many as there are generated ones: uint8 [N, F, Y, X, 3]."""
        return np.concatenate([self.counted(video) for video, _ in self.real_batches(len(self.captions))])

    @property
    def num_known(self) -> int:
        """Pixel frames that are given to a continuation."""
        given = self.settings.num_given
        return 1 + (given - 1) * self.generator.tokenizer.config.temporal_compression if given else 0

    @cached_property
    def continued(self) -> list[Continued]:
        """Batches of true clips, and what the generator makes of their first frames, `evaluate.samples_per_prompt` times."""
        batches, done, samples = [], 0, self.settings.samples_per_prompt
        for truth, captions in self.real_batches(self.settings.num_clips):
            given, seed = truth[:, : self.num_known].repeat(samples, axis=0), self.seed + done
            texts = [caption for caption in captions for _ in range(samples)]
            made = self.generator.generate(texts, seed=seed, given=given, num_frames=truth.shape[1]).videos
            made = self.counted(made)
            batches.append(
                Continued(self.counted(truth), made.reshape(len(truth), samples, *made.shape[1:]), captions, seed)
            )
            done += len(made)
        return batches

    @property
    def continued_protocol(self) -> str:
        """What the continuations are: their number, what was given, size, rate and seeds."""
        truth, c = np.concatenate([batch.truth for batch in self.continued]), self.settings
        return (
            f"the first {_count(truth)} of split {c.split!r} {self._rate}, {self.num_known} frames given, {c.samples_per_prompt} continuations of "
            f"each, {self._seeds(len(truth) * c.samples_per_prompt)}"
        )

    def counted(self, video: np.ndarray) -> np.ndarray:
        """Return what of clips [B, F, Y, X, 3] is compared: their first frames, and these smaller where the settings say so."""
        video, size = video[:, : self.settings.num_frames or None], self.settings.frame_size
        return shrink(video, size) if size else video

    def real_batches(self, num: int):
        """Yield `num` clips of the evaluation split, as long as those that the generator makes: (uint8 [B, F, Y, X, 3], captions).

        Every process reads all of them.
        """
        generator, c = self.generator, self.settings
        temporal = generator.tokenizer.config.temporal_compression
        clip = (1 + (generator.config.sequence.grid[0] - 1) * temporal, *generator.frame_size)
        data = dataclasses.replace(self.tokenizer_config.data, batch_size=min(c.batch_size, num), buckets=(clip,))
        rate = next(filter(None, map(manifest_fps, token_manifests(generator.config).values())), 0.0)
        if data.source == "clips" and not agree(
            [data.fps, rate]
        ):  # the transformer knows clips at the rate of its tokens
            data = dataclasses.replace(data, fps=rate)
        # The tokenizer's clips with the transformer's text.
        text = {"text": generator.config.text, "sequence": generator.config.sequence}
        config = dataclasses.replace(self.tokenizer_config, data=data, **text)
        if not data.path:
            raise UserError(
                "the tokenizer's run names no clips (config.data.path): nothing can be compared with, and prompts have to be given (--prompts=FILE)"
            )
        with make_pipeline(config, c.split, process_index=0, process_count=1, train=False) as pipeline:
            for start, batch in zip(range(0, num, data.batch_size), pipeline):
                rows = slice(num - start)
                yield batch["video"][rows], [generator.text.decode(ids) for ids in batch["text"][rows]]


def shrink(video: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of frames [B, F, Y, X, 3] at `size` x `size`, bilinear with half-pixel centres, as the published
    protocols have it; a frame half as large is then the mean of four pixels. uint8."""
    short = min(video.shape[2:4])
    top, left = ((side - short) // 2 for side in video.shape[2:4])
    square = video[:, :, top : top + short, left : left + short].astype(np.float32)
    shape = (*video.shape[:2], size, size, video.shape[-1])
    return np.asarray(jnp.round(jax.image.resize(square, shape, "bilinear", antialias=False))).astype(np.uint8)


def _count(video: np.ndarray) -> str:
    num, frames, height, width = video.shape[:4]
    return f"{num} clips of {frames} frames of {width}x{height}"
