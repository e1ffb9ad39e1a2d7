"""Find the mesh, batch and rematerialisation with the highest predicted MFU that fits, by the analytic estimate."""

from __future__ import annotations

import dataclasses
import itertools

from lumos.chips import Topology
from lumos.config import Config
from lumos.errors import UserError
from lumos.planning.estimate import Estimate, estimate_train

REMATS = (
    "save:query,key,value,attention,out,gate,up",
    "save:query,key,value,attention,out,gate",
    "minimal",
    "full",
)
# What an estimate may fill, given its error against real compiles.
HEADROOM = 0.92


def candidates(config: Config, topology: Topology):
    """Yield configs: powers of two of every mesh axis, a quarter to four times the batch, every policy."""
    powers = [2**i for i in range(topology.num_devices.bit_length()) if topology.num_devices % 2**i == 0]
    batches = sorted({int(config.data.batch_size * factor) for factor in (0.25, 0.5, 1, 2, 4)})
    for fsdp, context, tensor in itertools.product(powers, (1, 2, 4, 8), (1, 2, 4)):
        inner = fsdp * context * tensor
        if topology.num_devices % inner or fsdp < 4:
            continue
        replica = topology.num_devices // inner
        if replica % topology.num_slices:
            continue
        mesh = dataclasses.replace(config.mesh, replica=replica, fsdp=fsdp, context=context, tensor=tensor)
        for batch, remat in itertools.product(batches, REMATS):
            if batch and batch % (replica * fsdp * config.train.accumulation) == 0:
                yield dataclasses.replace(
                    config,
                    mesh=mesh,
                    data=dataclasses.replace(config.data, batch_size=batch),
                    model=dataclasses.replace(config.model, remat=remat),
                )


def search(config: Config, topology: Topology, num: int = 5) -> list[tuple[Config, Estimate]]:
    """Return the best plans that fit, best first. Raises UserError if none does."""
    found = []
    for candidate in candidates(config, topology):
        try:
            estimate = estimate_train(candidate, topology)
        except UserError:  # sizes that do not divide
            continue
        if estimate.memory.total <= HEADROOM * topology.chip.hbm:
            found.append((candidate, estimate))
    if not found:
        raise UserError(f"no mesh, batch or remat policy fits {topology}: take more devices, or shorten the sequence")
    # Of equally fast plans the smaller batch and the simpler mesh.
    found.sort(key=lambda pair: (-round(pair[1].roofline.mfu, 3), pair[0].data.batch_size, pair[0].mesh.tensor))
    return found[:num]


def suggestion(config: Config, topology: Topology) -> str:
    """Return one change that makes a plan fit, by the estimate."""
    model, data, train = config.model, config.data, config.train
    changes = [
        ("--config.model.remat=minimal", {"model": dataclasses.replace(model, remat="minimal")}),
        ("--config.model.remat=full", {"model": dataclasses.replace(model, remat="full")}),
    ]
    full = dataclasses.replace(model, remat="full")
    for factor in (2, 4, 8):
        if data.batch_size % factor == 0:
            halved = dataclasses.replace(data, batch_size=data.batch_size // factor)
            more = dataclasses.replace(train, accumulation=train.accumulation * factor)
            changes += [
                (f"--config.train.accumulation={more.accumulation}", {"train": more}),
                (
                    f"--config.model.remat=full --config.data.batch_size={halved.batch_size}",
                    {"model": full, "data": halved},
                ),
            ]
    for text, change in changes:
        try:
            changed = dataclasses.replace(config, **change)
            if estimate_train(changed, topology).memory.total <= HEADROOM * topology.chip.hbm:
                return text
        except UserError:
            continue
    return "more devices, or a larger config.mesh.fsdp, context or tensor (--search looks for one)"
