"""The released Lumos-1 models (arXiv 2507.08801) on the modules that pretraining uses.

    model = lumos1.load("Lumos-1-1B")                  # config.json and safetensors, official names
    model.logits(ids), model.loss(masked_ids, labels)  # positions and visibility are read from the ids
    model.generate(prompt_ids, size=(32, 56), fps=12, duration=2)
    model.save("out")                                  # official names again, bit for bit

`Lumos1` is a pytree whose leaves are its parameters: `jax.grad(lambda m: m.loss(ids, labels)[0])(model)` is a Lumos1
of gradients, and `dict(model.tensors())` gives them their official names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lumos import sharding
from lumos.config import GenerateConfig, ModelConfig
from lumos.errors import UserError
from lumos.generation.engine import Engine
from lumos.generation.guidance import TextGuidance
from lumos.generation.released import Released
from lumos.generation.sampler import Confidence, row_keys
from lumos.interop import lumos1_config, lumos1_prompt
from lumos.interop.lumos1_parse import Parsed, parse
from lumos.model.cross_entropy import linear_cross_entropy
from lumos.model.definition import Definition
from lumos.model.transformer import make_definition
from lumos.sequence import lumos1 as lumos1_layout
from lumos.sequence.rule import StageCausal
from lumos.sequence.tokens import Positions
from lumos.sequence.vocabulary import Vocabulary
from lumos.weights import safetensors_files, transformer_names

_CHUNK = 1024  # positions whose logits exist at once
_ROUND = 256  # the number of labelled positions is rounded up to this: fewer shapes to compile


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """Everything about a model but its weights."""

    config: ModelConfig
    vocabulary: Vocabulary
    size_unit: int  # latent cells per unit of the size tokens
    official: Mapping[str, Any]  # config.json
    dtypes: Mapping[str, str]  # stored dtype of each tensor
    ignored: tuple[str, ...]  # tensors of the checkpoint that the model has no use for

    @functools.cached_property
    def definition(self) -> Definition:
        return make_definition(self.config, self.vocabulary)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("spec",))
@dataclasses.dataclass
class Lumos1:
    """A Lumos-1 model. Token ids are integers [B, L] (or [L]: a batch of one); rows never see one another."""

    params: Any
    spec: Spec

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of checkpoint tensors that were not used."""
        return self.spec.ignored

    def positions(self, input_ids) -> Positions:
        """Return rotary positions text, t, h, w, is_content, int32 [B, L] each (see `lumos.model.rope.mm_rope`)."""
        return self._parse(input_ids)[1].positions

    def attention_allowed(self, input_ids) -> np.ndarray:
        """Return who may attend to whom, bool [B, L (query), L (key)]: for tests and tiny inputs."""
        ids_BL, parsed = self._parse(input_ids)
        return np.asarray(parsed.keys.dense(ids_BL.shape[1]))

    def hidden(self, input_ids) -> jax.Array:
        """Return final hidden states (after the last norm) [B, L, D]."""
        ids_BL, parsed = self._parse(input_ids)
        return _hidden(self.spec, self.params, ids_BL, parsed.positions, parsed.keys)

    def logits(self, input_ids) -> jax.Array:
        """Return float32 logits [B, L, V] over the whole vocabulary; they are not shifted (masked prediction)."""
        ids_BL, parsed = self._parse(input_ids)
        return _logits(self.spec, self.params, ids_BL, parsed.positions, parsed.keys)

    def loss(self, masked_input_ids, labels) -> tuple[jax.Array, jax.Array]:
        """Return the mean cross-entropy of the labelled visual tokens of the batch, and its mean per latent frame.

        Args:
          masked_input_ids: ids [B, L] with [MASK] where tokens are to be predicted.
          labels: ids [B, L]; only visual ids count, all else (-100, markers) is ignored.

        Returns:
          A float32 scalar, and float32 [T] by the true frame of each token (0 for a frame without labels). Without
          any label both are 0. Softmax runs over the visual ids only, and logits exist for labelled positions only.
        """
        ids_BL, parsed = self._parse(masked_input_ids)
        labels_BL = _as_batch(labels)
        if labels_BL.shape != ids_BL.shape:
            raise UserError(f"labels {list(labels_BL.shape)} must have the shape of the ids {list(ids_BL.shape)}")
        v = self.spec.vocabulary
        where = np.flatnonzero((labels_BL >= v.visual_start) & (labels_BL < v.visual_end))
        padded = np.zeros(max(-(-len(where) // _ROUND) * _ROUND, _ROUND), np.int32)
        padded[: len(where)] = where
        weights = (np.arange(len(padded)) < len(where)).astype(np.float32)
        targets = labels_BL.reshape(-1)[padded] - v.visual_start
        frames = parsed.frame_BL.reshape(-1)[padded]
        num_frames = int(parsed.frame_BL.max(initial=-1)) + 1
        return _loss(
            self.spec, num_frames, self.params, ids_BL, parsed.positions, parsed.keys, padded, targets, weights, frames
        )

    def generate(
        self,
        prompt_ids,
        *,
        size: tuple[int, int],
        num_frames: int | None = None,
        fps: int = 12,
        duration: int = 2,
        steps: int = 50,
        guidance: float = 15.0,
        history_ratio: float = 0.7,
        temperature: float = 1.0,
        given_frames=None,
        mode: str = "reference",
        seed: int = 0,
        noise: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> np.ndarray:
        """Generate latent frames after a prompt; return ids from video_start to video_end, int32 [B, n].

        Args:
          prompt_ids: [L], [B, L] padded with 0 on the right, or lists of unequal length: BOS, text, separators (trailing
            ones are immaterial). A prompt may go on with video_start and whole frames: these are then given.
          size: (H, W) of a frame in latent cells; one cell is 8 x 8 pixels, and a size token counts 4 of them.
          num_frames: latent frames in all, given ones included; by default those of `duration` seconds at `fps`,
            ceil((fps duration - 1) / 4) + 1. An image is fps=1, duration=1.
          fps, duration: as written into the sequence.
          steps: unmasking iterations per latent frame.
          guidance: classifier-free guidance scale; 1 runs the conditional branch alone.
          history_ratio: share of a finished frame that is masked before it enters the cache.
          temperature: of the Gumbel noise on the confidence.
          given_frames: codes (or token ids) of the first latent frames, [T', H, W] or [B, T', H, W].
          mode: "reference" repeats the released code decision by decision (see `lumos.generation.released`); "paper" is
            the method as published: temperature annealed within every frame, history mask on given frames too.
          seed: of the first clip's random numbers; clip i has seed + i.
          noise: replaces them: noise(generated frame, step) -> uniform numbers ([B, H W, codebook], [B, H W]) for the
            draw of the codes and for the confidence (see `lumos.generation.released.recorded`).

        A 1-D prompt gives 1-D ids. Each shape of prompt, grid and settings compiles one program.
        """
        if mode not in _SAMPLERS:
            raise UserError(f"mode={mode!r}; allowed: {', '.join(_SAMPLERS)}")
        settings = GenerateConfig(
            steps=steps, guidance=TextGuidance(scale=float(guidance)), history_ratio=float(history_ratio),
            sampler=_SAMPLERS[mode](temperature=float(temperature)), fps=float(fps),
        )  # fmt: skip
        prompt = lumos1_prompt.read(prompt_ids, given_frames, size, self.spec.vocabulary, self.spec.size_unit)
        fps, duration = prompt.fps or fps, prompt.duration or duration
        num_frames = num_frames or lumos1_prompt.num_latent_frames(fps, duration)
        num_given = prompt.given_BTHW.shape[1]
        if num_given > num_frames:
            raise UserError(f"{num_given} given latent frames do not fit a video of {num_frames}")
        grid = (num_frames, *size)
        layout, program = _program(self.spec, prompt.text_BP.shape[1], grid, fps, duration, settings, num_given, noise)
        tokens_BTHW = np.zeros((len(prompt.text_BP), *grid), np.int32)
        tokens_BTHW[:, :num_given] = prompt.given_BTHW
        if num_given < num_frames:
            keys_B = row_keys(seed, len(prompt.text_BP))
            tokens_BTHW = program(self.params, prompt.text_BP, prompt.length_B, tokens_BTHW, keys_B)
        ids_BL = np.asarray(layout.assemble(jnp.asarray(prompt.text_BP), jnp.asarray(tokens_BTHW)))
        ids = ids_BL[:, layout.drop_to : -1]  # the layout ends in one more separator
        return ids[0] if prompt.is_single else ids

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (official name, array) of every parameter."""
        return transformer_names.export(self.params, self.spec.definition)

    def save(self, directory: str | Path, *, dtype: str | None = None, max_shard_bytes: int = 5_000_000_000) -> None:
        """Write config.json and safetensors with the official names.

        Every tensor is written in the dtype that it was stored in, so that an unchanged model is written bit for bit as it
        was read; `dtype` ("float32", "bfloat16") overrides that.
        """
        tensors = transformer_names.export(self.params, self.spec.definition, dtype or self.spec.dtypes)
        safetensors_files.write(directory, tensors, max_bytes=max_shard_bytes)
        official = dict(self.spec.official) | ({"torch_dtype": dtype} if dtype else {})
        (Path(directory) / "config.json").write_text(json.dumps(official, indent=1) + "\n")

    def _parse(self, input_ids) -> tuple[np.ndarray, Parsed]:
        ids_BL = _as_batch(input_ids)
        if ids_BL.size and not 0 <= ids_BL.min() <= ids_BL.max() < self.spec.vocabulary.size:
            raise UserError(
                f"token ids from {ids_BL.min()} to {ids_BL.max()} do not fit the vocabulary of {self.spec.vocabulary.size}"
            )
        return ids_BL, parse(ids_BL, self.spec.vocabulary, self.spec.size_unit)


def load(
    directory: str | Path,
    *,
    dtype: str = "float32",
    special_tokens: Mapping[str, int] | None = None,
    size_token_zero: int = 8804,
    visual_start: int = 65_536,
    token_patch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
) -> Lumos1:
    """Load a released checkpoint: config.json and one or more safetensors files (sharded index too).

    Args:
      directory: where the files are.
      dtype: of the weights and of compute, "float32" or "bfloat16".
      special_tokens: ids of markers other than the released ones, {"image_start_token": 8197, ...}.
      size_token_zero: id of the number token 0.
      visual_start: id of visual code 0; the table's rest is the codebook.
      token_patch_size: pixels that one unit of a size token stands for.
      mesh: shard the parameters over its devices, as `lumos train` does; by default they lie on one device. Either way
        each shard is read from the file into its place: the model is never held twice.

    Raises:
      UserError: no checkpoint there, a variant that cannot be represented, or tensors that do not match config.json.
    """
    official = lumos1_config.read(directory)
    if not isinstance(official.get("vocab_size"), int):
        raise UserError(f"{directory}/config.json lacks vocab_size")
    vocabulary = lumos1_config.make_vocabulary(official["vocab_size"], special_tokens, size_token_zero, visual_start)
    config = lumos1_config.model_config(official, vocabulary, dtype)
    unit = lumos1_config.size_unit(token_patch_size)
    definition = make_definition(config, vocabulary)
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: one, definition.abstract)
    else:
        places = sharding.param_shardings(mesh, definition.axes, definition.abstract)
    with safetensors_files.SafetensorsFiles(directory) as files:
        params, dtypes, ignored = transformer_names.load(files, definition, places)
    return Lumos1(params, Spec(config, vocabulary, unit, official, dtypes, tuple(ignored)))


_SAMPLERS = {"reference": Released, "paper": Confidence}


@functools.lru_cache(maxsize=16)
def _program(
    spec: Spec, num_text: int, grid, fps: int, duration: int, settings: GenerateConfig, num_given: int, uniform
):
    """Return the layout of a generated sequence and the program that decodes it. Raises UserError."""
    unit = spec.size_unit
    try:
        layout = lumos1_layout.build(spec.vocabulary, num_text, grid, fps=fps, duration=duration, size_unit=unit)
    except ValueError as error:
        raise UserError(str(error)) from error
    engine = Engine(spec.definition, layout, settings, StageCausal(), chunk=_CHUNK, uniform=uniform)
    return layout, jax.jit(lambda *arguments: engine.decode(*arguments, num_given))


def _as_batch(ids) -> np.ndarray:
    ids = np.asarray(ids)
    return ids[None] if ids.ndim == 1 else ids


@functools.partial(jax.jit, static_argnums=0)
def _hidden(spec: Spec, params, ids_BL, positions, keys):
    return spec.definition.bind(params).hidden(ids_BL, positions, keys)


@functools.partial(jax.jit, static_argnums=0)
def _logits(spec: Spec, params, ids_BL, positions, keys):
    model = spec.definition.bind(params)
    hidden_BLD = model.hidden(ids_BL, positions, keys)
    logits_BLV = jnp.dot(hidden_BLD, model.head(0, spec.vocabulary.size), preferred_element_type=jnp.float32)
    hidden_ids = lumos1_config.hidden_logits(spec.official)
    return logits_BLV.at[..., hidden_ids].set(jnp.finfo(jnp.float32).min) if len(hidden_ids) else logits_BLV


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(spec: Spec, num_frames: int, params, ids_BL, positions, keys, where_J, targets_J, weights_J, frames_J):
    model, v = spec.definition.bind(params), spec.vocabulary
    hidden_BLD = model.hidden(ids_BL, positions, keys)
    hidden_JD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[where_J]
    head_DV = model.head(v.visual_start, v.visual_end)
    loss_J = linear_cross_entropy(hidden_JD, head_DV, targets_J, weights_J, chunk=_CHUNK).loss
    sums_T, counts_T = (jax.ops.segment_sum(x, frames_J, num_segments=num_frames) for x in (loss_J, weights_J))
    return loss_J.sum() / jnp.maximum(weights_J.sum(), 1), sums_T / jnp.maximum(counts_T, 1)
