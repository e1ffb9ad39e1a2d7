"""The instant estimate of a plan: memory and time of one step from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from lumos import sharding
from lumos.chips import Topology
from lumos.config import Config, ModelConfig
from lumos.data.text import TextTokenizer
from lumos.errors import UserError
from lumos.layouts import make_layout
from lumos.model import flops
from lumos.model.transformer import make_definition
from lumos.planning import workload
from lumos.planning.calibration import efficiency_of
from lumos.planning.memory import Memory, abstract_mesh, local_bytes, train_memory
from lumos.planning.roofline import Roofline, communication, matrix_fill, roofline
from lumos.sequence.layout import Layout
from lumos.training.from_config import make_objective_optimizer
from lumos.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Estimate:
    memory: Memory
    roofline: Roofline
    collectives: dict[str, float]  # bytes per device and step, by kind


def fill_vocabulary_sizes(config: Config) -> Config:
    """Fill in vocabulary sizes without looking at data."""
    model = config.model
    text = model.text_vocab or TextTokenizer(config.text.model).vocab_size
    model = dataclasses.replace(model, text_vocab=text, visual_vocab=model.visual_vocab or config.codebook_size)
    return dataclasses.replace(config, model=model)


def mesh_sizes(config: Config, topology: Topology) -> dict[str, int]:
    """Return the size of every mesh axis on a topology. Raises UserError like `sharding.make_mesh`."""
    return sharding.fill(config.mesh, topology.num_devices)


def estimate_train(config: Config, topology: Topology) -> Estimate:
    """Estimate the train step of a transformer. Raises UserError where sizes do not divide."""
    sizes = mesh_sizes(config, topology)
    _check(config, sizes, topology)
    layout = make_layout(config)
    w = workload.from_config(config, layout, sizes, tpu=topology.is_tpu)
    memory = train_memory(config, _definition(config.model, layout), w, sizes, topology)
    moved = {kind: sum(axes.values()) for kind, axes in communication(w).items()}
    return Estimate(memory, roofline(w, topology, efficiency_of(topology)), moved)


def estimate_tokenizer(config: Config, topology: Topology) -> Estimate:
    """Estimate the train step of a tokenizer: the FLOPs of its program, and the result of every convolution kept.

    What norms and nonlinearities make of those results is fused into what reads it (docs/plans.md has the compiled peak).
    """
    from lumos.tokenizers.objective import TokenizerObjective

    sizes = mesh_sizes(config, topology)
    rows = config.data.batch_size / (sizes["replica"] * sizes["fsdp"])
    objective = TokenizerObjective(config)
    optimizer = make_objective_optimizer(objective, config)
    state = abstract_state(
        objective.definition,
        optimizer,
        abstract_mesh(sizes),
        ema=config.optimizer.ema_decay > 0,
        offload=config.optimizer.offload,
    )
    params = local_bytes(state.params)
    clip = jax.ShapeDtypeStruct((1, *config.data.buckets[0], 3), jnp.float32)
    reconstruct = lambda p, video: objective.vae.bind(p).reconstruct(video)[0]
    kept = rows / config.train.accumulation * flops.count_matmul_outputs(reconstruct, objective.vae.abstract, clip)
    size = jnp.dtype(config.tokenizer.dtype).itemsize
    memory = Memory(
        params=params, optimizer=local_bytes(state.opt_state), ema=local_bytes(state.ema),
        batch=rows * math.prod(clip.shape), activations=size * kept, temporaries=params,
    )  # fmt: skip
    work = objective.flops_per_step()
    efficiency, chip = efficiency_of(topology), topology.chip
    # Each activation is written and read about six times by norms, nonlinearities and their gradients.
    hbm = 12 * size * kept * config.train.accumulation / chip.hbm_rate
    matmul = work / topology.num_devices / chip.flops / efficiency.matmul
    moved = {"all-gather": 2.0 * params * (sizes["fsdp"] - 1), "reduce-scatter": 1.0 * params * (sizes["fsdp"] - 1)}
    seconds, bound = matmul + hbm, "hbm" if hbm > matmul else "matmul"
    mfu = work / topology.num_devices / chip.flops / seconds
    return Estimate(memory, Roofline(matmul, 0.0, hbm, 0.0, 0.0, seconds, mfu, mfu, bound), moved)


def estimate_generate(config: Config, topology: Topology) -> Estimate:
    """Estimate decoding of one batch of `evaluate.batch_size` rows: every group runs `generate.steps` + 1 passes."""
    sizes = mesh_sizes(config, topology)
    model, layout, chip = config.model, make_layout(config, copies=1), topology.chip
    definition, efficiency = _definition(model, layout), efficiency_of(topology)
    size = jnp.dtype(model.dtype).itemsize
    places = sharding.param_shardings(abstract_mesh(sizes), definition.axes, definition.abstract)
    shards = (
        math.prod(s.shard_shape(x.shape)) for x, s in zip(jax.tree.leaves(definition.abstract), jax.tree.leaves(places))
    )
    params = jnp.dtype(model.param_dtype).itemsize * sum(shards)
    rows = config.evaluate.batch_size * len(config.generate.guidance.branches())
    groups = math.gcd(rows, sizes["replica"] * sizes["fsdp"])
    cache = 2 * size * model.num_layers * rows / groups * layout.length * model.num_kv_heads * model.head_dim
    head = size * model.model_dim * layout.vocabulary.visual_size
    work_rows = rows / groups * max(map(len, layout.groups))
    passes = len(layout.groups) * (config.generate.steps + 1)
    memory = Memory(
        params=params, optimizer=0, ema=0, batch=4 * rows * layout.length, activations=2.5 * cache,
        temporaries=head + work_rows * size * (3 * model.mlp_dim + 6 * model.model_dim) + 8 * config.loss.chunk * layout.vocabulary.visual_size,
    )  # fmt: skip
    weights = definition.num_params - 2 * layout.vocabulary.size * model.model_dim
    dense = 2.0 * work_rows * (weights + model.model_dim * layout.vocabulary.visual_size)
    attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * work_rows * layout.length / 2
    matmul = passes * dense / chip.flops / efficiency.matmul
    attending = passes * attention / chip.flops / efficiency.attention / matrix_fill(model.head_dim, chip)
    hbm = passes * (size * weights + cache) / chip.hbm_rate
    seconds = max(matmul + attending, hbm)
    bound = "hbm" if hbm > matmul + attending else "matmul" if matmul > attending else "attention"
    mfu = passes * (dense + attention) / chip.flops / seconds
    moved = {"all-gather": passes * size * weights * (1 - 1 / sizes["fsdp"])}
    return Estimate(memory, Roofline(matmul, attending, hbm, 0.0, 0.0, seconds, mfu, mfu, bound), moved)


@functools.lru_cache(maxsize=4)
def _described(model: ModelConfig, vocabulary):
    return make_definition(model, vocabulary)


def _definition(model: ModelConfig, layout: Layout):
    # Policies change nothing about the parameters, and describing a model takes a second.
    return _described(dataclasses.replace(model, remat="none"), layout.vocabulary)


def _check(config: Config, sizes: dict[str, int], topology: Topology) -> None:
    rows = sizes["replica"] * sizes["fsdp"] * config.train.accumulation
    if config.data.batch_size % rows:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} must be a multiple of {rows}: replica * fsdp * accumulation"
        )
    if sizes["replica"] % topology.num_slices and topology.is_tpu:
        raise UserError(
            f"config.mesh.replica={sizes['replica']} must be a multiple of the {topology.num_slices} slices"
        )
    for name in ("num_heads", "num_kv_heads", "mlp_dim"):
        if getattr(config.model, name) % sizes["tensor"]:
            raise UserError(
                f"config.model.{name}={getattr(config.model, name)} is not divisible by config.mesh.tensor={sizes['tensor']}"
            )
