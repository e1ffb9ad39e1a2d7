"""The functions of lumos for scripts and notebooks: `lumos.load`, `lumos.train`, `lumos.data.open`, ...

The verbs of the command line call the same code. Bad input raises `lumos.UserError`, whose message is one line. Heavy modules are
imported where they are used: `import lumos` takes milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lumos import outputs
from lumos.errors import UserError

if TYPE_CHECKING:
    from lumos.config import Config
    from lumos.data.pipeline import Pipeline
    from lumos.tokenizers.pretrained import Tokenizer
    from lumos.trained import Model

PathLike = str | os.PathLike[str]


def load_config(config: Config | PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return a checked, frozen config.

    Args:
      config: a `Config`, or what `--config` takes: path.py[:variant] (also of a config that ships with lumos), config.json, or
        a training workdir.
      overrides: values of fields by their dotted names, such as {"model.num_layers": 8}.

    Raises:
      UserError: no such config, or wrong fields or values.
    """
    from lumos import config_loading
    from lumos.config import Config
    from lumos.config_show import load_any

    if isinstance(config, Config):
        return config_loading.override(config, dict(overrides or {}))
    return load_any(os.fspath(config), dict(overrides or {}))


def load(
    path: PathLike,
    *,
    step: int | str = "",
    weights: str = "",
    dtype: str = "",
    mesh: Mapping[str, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Load a trained transformer with its text model and its tokenizer.

    Args:
      path: a training workdir, a release (`lumos export`), or one on the Hugging Face Hub, hf://organisation/name[@revision].
      step: number of the checkpoint, or "best" (in the evaluations of training); by default the newest.
      weights: "ema", "raw", or "" for the EMA where there is one.
      dtype: precision in which weights are held, such as "bfloat16"; by default that of the run.
      mesh: devices along axes of the mesh, such as {"fsdp": 4, "tensor": 2}; by default those of the run where they fit, else all
        devices as "fsdp".
      overrides: values of config fields by their dotted names, such as {"generate.steps": 8}.

    Raises:
      UserError: no such run or checkpoint, or no transformer (`lumos.load_tokenizer` loads tokenizers).
    """
    from lumos.checkpoint import read_config
    from lumos.checkpoint_steps import resolve
    from lumos.release.hub import local
    from lumos.trained import Model

    path, fields = local(os.fspath(path)), dict(overrides or {})
    if dtype:
        fields["model.param_dtype"] = dtype
    fields |= {f"mesh.{axis}": size for axis, size in (mesh or {}).items()}
    if read_config(path)["task"] == "tokenizer":
        raise UserError(f"{path} holds a tokenizer run; load it with lumos.load_tokenizer")
    steps = resolve(path, str(step)) if step != "" else [None]
    if len(steps) > 1:
        raise UserError(f"step={step!r} names {len(steps)} checkpoints; give one")
    return Model.load(path, fields, steps[0], weights)


def make_env(
    path: PathLike,
    num_envs: int = 1,
    *,
    reward: Any = "",
    max_steps: int = 0,
    given: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Return a trained world as a batch of environments (`gymnasium.vector.VectorEnv`); needs lumos-video[worlds].

    Args:
      path: a training workdir of a transformer with one stream, the action, or a release as for `load`.
      num_envs: environments that step together.
      reward: (frames before uint8 [N, Y, X, 3], actions [N], frames after) -> (rewards [N], whether episodes end [N]), or its name
        "module:function"; by default nothing is rewarded and no episode ends. `lumos.worlds.readers.Rewards` is one that was
        learnt from recordings.
      max_steps: after which an episode is cut off; 0 = never.
      given: latent frames of a held-out clip that a world begins with.
      overrides: values of config fields by their dotted names.

    Raises:
      UserError: no such run, or none of a world.
    """
    import importlib.util

    if importlib.util.find_spec("gymnasium") is None:
        raise UserError("lumos.make_env needs Gymnasium: pip install 'lumos-video[worlds]'")
    from lumos.release.hub import local
    from lumos.worlds.env import WorldEnv
    from lumos.worlds.world import World

    if num_envs < 1:
        raise UserError(f"num_envs={num_envs} must be at least 1")
    world = World.load(local(os.fspath(path)), num_envs, dict(overrides or {}), given=given)
    return WorldEnv(world, reward=reward, max_steps=max_steps)


def load_tokenizer(path: PathLike) -> Tokenizer:
    """Load a trained tokenizer: `encode` and `decode` turn pixels into tokens and back.

    Args:
      path: a training workdir of a tokenizer run, or a release as for `load`.

    Raises:
      UserError: no such run, or no tokenizer.
    """
    from lumos.release.hub import local
    from lumos.tokenizers import pretrained

    return pretrained.load(local(os.fspath(path)))


def train(
    config: Config | PathLike,
    workdir: PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    init_from: PathLike = "",
    fresh: Sequence[str] = (),
    profile_at: int = 0,
) -> dict[str, Any]:
    """Train a tokenizer or a transformer; go on from the newest checkpoint where the workdir has one.

    Args:
      config: see `load_config`; config.task says what is trained.
      workdir: folder, or URL in a bucket (gs://, s3://), of checkpoints, metrics and samples.
      overrides: values of config fields by their dotted names.
      init_from: workdir whose weights a new run starts from.
      fresh: parameters that start anew even so, such as ("lm_head", "embed").
      profile_at: step from which three steps are profiled; 0 = only on SIGUSR1.

    Returns:
      The last evaluation.

    Raises:
      UserError: config, data or workdir cannot be used, saving failed, or the numbers went bad.
      Preempted: SIGTERM came; the state is saved.
    """
    from lumos.runtime.watchdog import Watchdog

    with Watchdog() as watchdog:  # before jax is imported and devices are looked for
        outputs.check_workdir(os.fspath(workdir), "--workdir")
        from lumos.runtime import compiler_memory
        from lumos.training import loop

        compiler_memory.give_back_after_compiling()
        run = load_config(config, overrides)
        options: dict[str, Any] = {"init_from": init_from, "fresh": tuple(fresh), "profile_at": profile_at}
        return loop.train(run, os.fspath(workdir), watchdog=watchdog, **options)


def open_data(
    config: Config | PathLike,
    split: str = "",
    *,
    overrides: Mapping[str, Any] | None = None,
    shuffle: bool = True,
    step: int = 0,
) -> Pipeline:
    """Open the data of a config: an iterator of batches, and a context manager that stops its threads.

    A batch is a dict of this process's rows: "video" uint8 [B, F, Y, X, 3] (or "tokens" int32 [B, T, H, W]), "text" int32 [B, P]
    with the padding on the left, and "text_length" int32 [B].

    Args:
      config: see `load_config`; a transformer run takes its buckets from its tokens.
      split: by default `data.split` (with `shuffle`) or `data.eval_split`.
      overrides: values of config fields by their dotted names, such as {"data.path": "clips.jsonl"}.
      shuffle: the endless stream of training, a function of (config.seed, step). Otherwise every clip once, in a fixed order.
      step: the step of training whose batch comes first.

    Raises:
      UserError: the data cannot be opened, or do not fit the config.
    """
    import jax

    from lumos.data.pipeline import make_pipeline
    from lumos.training.match_data import encoder_of, match_data

    run = match_data(load_config(config, overrides))
    return make_pipeline(
        run,
        split or (run.data.split if shuffle else run.data.eval_split),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        start_step=step,
        train=shuffle,
        encode=encoder_of(run),
    )
