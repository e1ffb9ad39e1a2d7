"""Compile the real step for a TPU that is not there: libtpu brings the compiler (extra `tpu-plan`)."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lumos import sharding
from lumos.chips import Topology
from lumos.config import Config
from lumos.errors import UserError
from lumos.generation import numbers
from lumos.planning import hlo
from lumos.training.from_config import make_objective, make_objective_optimizer
from lumos.training.state import abstract_state
from lumos.training.step import make_train_step

# Collectives in one piece: otherwise the compiler cuts them into steps of matmuls, which no count would show.
_OPTIONS = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    "xla_tpu_enable_async_collective_fusion": "false",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device's program; bytes."""

    fits: bool
    arguments: int
    temporaries: int
    peak: int
    seconds: float
    collectives: hlo.Collectives | None
    largest: list[tuple[str, int]]
    message: str = ""


def is_available() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def devices(topology: Topology) -> list:
    """Return the devices of a topology that does not exist here."""
    from jax.experimental import topologies

    # Several planners may run side by side, and there is no metadata server to ask.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "")
    slices = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    name = f"{topology.chip_name}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **slices).devices
    except Exception as error:
        raise UserError(f"libtpu knows no topology {name}: {str(error).splitlines()[0]}") from error


def compile_train(config: Config, mesh: Mesh) -> Compiled:
    """Compile the train step of a resolved config (transformer or tokenizer)."""
    objective = make_objective(config)
    optimizer = make_objective_optimizer(objective, config)
    state = abstract_state(
        objective.definition,
        optimizer,
        mesh,
        ema=config.optimizer.ema_decay > 0,
        offload=config.optimizer.offload,
        extra=objective.extra_state(),
    )
    step = make_train_step(objective, optimizer, config, mesh)
    return _compile(mesh, step, state, _abstract_batch(config, mesh))


def compile_generate(config: Config, mesh: Mesh) -> Compiled:
    """Compile the program of whole clips that `lumos generate` and `lumos evaluate` run, for `evaluate.batch_size` rows."""
    from lumos.training.transformer_objective import TransformerObjective
    from lumos.videos.generator import decode_program

    definition = TransformerObjective(config).definition
    structure, values = numbers.split(config.generate)
    num_codes = min(config.codebook_size, config.model.visual_vocab)
    program = decode_program(config, definition, config.sequence.grid, structure, num_codes=num_codes)
    places = sharding.param_shardings(mesh, definition.axes, definition.abstract)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), definition.abstract, places)
    rows = sharding.rows_to_split(mesh, config.evaluate.batch_size, len(config.generate.guidance.branches()))
    length = config.sequence.text_length
    shapes = ((rows, length), (rows,), (rows, *config.sequence.grid))
    values = {name: jax.ShapeDtypeStruct((), jnp.float32, weak_type=True) for name in values}
    arrays = [_array(mesh, shape) for shape in shapes]
    return _compile(mesh, program, params, *arrays, _array(mesh, (rows, 2), jnp.uint32), values)


def _abstract_batch(config: Config, mesh: Mesh) -> dict[str, Any]:
    rows, length = config.data.batch_size, config.sequence.text_length
    if config.task == "tokenizer":
        return {"video": _array(mesh, (rows, *config.data.buckets[0], 3), jnp.uint8)}
    return {
        "tokens": _array(mesh, (rows, *config.sequence.grid)),
        "text": _array(mesh, (rows, length)),
        "text_length": _array(mesh, (rows,)),
    }


def _array(mesh, shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.row_sharding(mesh, shape[0]))


def _compile(mesh: Mesh, function: Callable, *arguments) -> Compiled:
    start = time.perf_counter()
    held = sum(_local_bytes(x) for x in jax.tree.leaves(arguments))
    with jax.set_mesh(mesh):
        lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
            raise
        used = re.search(r"Used ([\d.]+)([GM]) of", message)
        peak = int(float(used[1]) * (2**30 if used[2] == "G" else 2**20)) if used else 0
        return Compiled(False, held, peak - held, peak, time.perf_counter() - start, None, [], message[:2000])
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or arguments + temporaries
    try:
        text = compiled.as_text()
    except (
        jax.errors.JaxRuntimeError
    ):  # some libtpu and jaxlib pairs cannot print the HLO of some chips; the rest stands
        text = ""
    found = hlo.collectives(text) if text else None
    seconds = time.perf_counter() - start
    return Compiled(True, arguments, temporaries, peak, seconds, found, hlo.largest_arrays(text))


def _local_bytes(x) -> int:
    shape = x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) is not None else x.shape
    return int(np.prod(shape)) * jnp.dtype(x.dtype).itemsize
