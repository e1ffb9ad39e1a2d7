"""A trained latent action model: tokens in, labels out."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lumos import config_loading, files, sharding
from lumos.checkpoint import Checkpointer, fingerprint, read_config
from lumos.config import Config
from lumos.errors import UserError
from lumos.latent_actions import model as latent
from lumos.latent_actions.beside import PART
from lumos.tokenizers.tokenize import read_manifest

_AT_ONCE = 256  # pairs of frames in a call of the compiled program


class Labeller:
    """Names what leads from frame to frame.

    Attributes:
      config: of the run.
      fingerprint: hash of the weights; labelled tokens carry it.
      workdir: absolute folder of the run.
    """

    def __init__(self, config: Config, params, workdir: str | Path):
        self.config, self.params, self.fingerprint = config, params, fingerprint(params)
        self.workdir = files.absolute(files.path(workdir))
        definition = latent.make_definition(config.actions, config.model.visual_vocab)
        self._infer = jax.jit(lambda params, frames: definition.bind(params).infer(frames).indices)

    @classmethod
    def load(cls, workdir: str | Path):
        """Load the newest weights (EMA where there is one) of a run with task "actions", or of a transformer that was trained beside
        latent actions. Raises UserError."""
        config = config_loading.parse(read_config(workdir))
        beside = config.task == "transformer" and config.actions.weight > 0
        if config.task != "actions" and not beside:
            raise UserError(
                f"{workdir} holds a run with task {config.task!r} and no latent actions: train one with config.task='actions', or a "
                "transformer with config.actions.weight"
            )
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = latent.make_definition(config.actions, config.model.visual_vocab).abstract
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), wanted)
        checkpointer = Checkpointer(workdir, read_only=True)
        try:
            params = checkpointer.restore_params({PART: wanted} if beside else wanted, part=PART if beside else "")
        finally:
            checkpointer.close()
        return cls(config, params[PART] if beside else params, workdir)

    @classmethod
    def of_tokens(cls, tokens: str) -> Labeller | None:
        """Load the model that named the latent actions of a folder of tokens; None where its last stream has none. Raises UserError."""
        manifest = read_manifest(tokens)
        if not (named := manifest.get("latent_actions")):
            return None
        if "workdir" not in named:
            raise UserError(
                f"{tokens}: its manifest does not say where the model of its latent actions is; label them anew"
            )
        labeller = cls.load(named["workdir"])
        if labeller.fingerprint != named["fingerprint"]:
            raise UserError(
                f"{tokens} has the latent actions of a model with the fingerprint {named['fingerprint']}, and {named['workdir']} holds "
                f"{labeller.fingerprint}; label them anew"
            )
        return labeller

    @property
    def num_codes(self) -> int:
        return self.config.actions.codes

    @sharding.on_one_device()
    def __call__(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Return the codes of clips, tokens [T, H, W] each, as streams int32 [T, 1]: null (the last code) at their first frames."""
        found: list[np.ndarray] = [np.full((len(clip), 1), self.num_codes, np.int32) for clip in clips]
        for grid in {clip.shape[1:] for clip in clips}:
            places = [(i, t) for i, clip in enumerate(clips) if clip.shape[1:] == grid for t in range(1, len(clip))]
            for begin in range(0, len(places), _AT_ONCE):
                part = places[begin : begin + _AT_ONCE]
                frames = [clips[i][np.maximum(np.arange(t - self.config.actions.history, t + 1), 0)] for i, t in part]
                frames += frames[-1:] * (_AT_ONCE - len(part))  # one compiled shape
                codes = np.asarray(self._infer(self.params, jnp.asarray(np.stack(frames), jnp.int32)))
                for (i, t), code in zip(part, codes.tolist()):
                    found[i][t] = code
        return found
