"""`lumos doctor`: is this machine, or are these machines, fit to train?

Every process measures a matmul on its first device and a sum over all devices; process 0 compares the hosts. A host that takes
much longer than the others holds up every step of a run, and nothing else would name it.
"""

from __future__ import annotations

import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lumos import files, outputs, sharding
from lumos.chips import peak_of_device
from lumos.errors import UserError
from lumos.version import package_version, version_line

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")
_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "gif", "png")
_SLOW = 1.3  # times the median at which a host is named
_REPEATS = 5
_FILE_BYTES = 64 * 2**20


def examine(workdir: str | Path = "") -> dict[str, Any]:
    """Return the facts, as `lumos info` does; "problems" is empty where nothing is wrong. Every process calls it."""
    problems: list[str] = []
    device = jax.devices()[0]
    size = 512 if device.platform == "cpu" else 8192
    matmul = _matmul_seconds(size)
    hosts = _of_hosts(matmul, _collective_seconds())
    problems += slow_hosts(hosts)
    rate = 2 * size**3 / matmul
    problems += _wrong_sums()
    facts = {
        "path": platform.node(),
        "what": version_line(),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "matmul_flops_per_s": rate,
        "share_of_peak": rate / peak if (peak := peak_of_device(device.device_kind)) else None,
        "versions": {name: version for name in _PACKAGES if (version := package_version(name))},
        "video": {
            "codecs": [name for name in _CODECS if _decodes(name, problems)],
            "writes_mp4": _writes("libx264", problems),
        },
        "hosts": hosts,
    }
    if workdir:
        facts["workdir"] = _try_workdir(workdir, problems)
    return facts | {"problems": problems}


def _wrong_sums() -> list[str]:
    """Return a sentence if XLA sums products wrongly on this CPU: see `lumos.runtime.xla_flags`."""
    if jax.default_backend() != "cpu":
        return []
    rows = jnp.stack([jnp.arange(32_769.0), jnp.zeros(32_769), jnp.zeros(32_769)], axis=1)
    if jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)[-1] == 2.0**30:
        return []
    return [
        "XLA sums wrongly on this CPU (jax-ml/jax#39103), so training and metrics may be wrong without an error: import lumos before anything "
        "compiles, and leave --xla_cpu_experimental_ynn_fusion_type out of XLA_FLAGS"
    ]


def slow_hosts(hosts: dict[str, dict[str, float]]) -> list[str]:
    """Return a sentence for every host that is slower than the median of all by more than noise."""
    found = []
    for name in ("matmul_seconds", "collective_seconds"):
        typical = statistics.median(row[name] for row in hosts.values())
        for host, row in hosts.items():
            if row[name] > _SLOW * typical:
                what = name.removesuffix("_seconds")
                found.append(
                    f"{host} is slow: its {what} takes {row[name] / typical:.1f} times the median of all hosts"
                )
    return found


def _of_hosts(matmul: float, collective: float) -> dict[str, dict[str, float]]:
    """Return what every process has measured, under "host:process"."""
    name = f"{socket.gethostname()}:{jax.process_index()}".encode()[-64:].ljust(64)
    names = multihost_utils.process_allgather(np.frombuffer(name, np.uint8)).reshape(-1, 64)
    times = multihost_utils.process_allgather(np.array([matmul, collective], np.float32)).reshape(-1, 2)
    return {
        bytes(row).decode().strip(): {"matmul_seconds": float(one), "collective_seconds": float(other)}
        for row, (one, other) in zip(names, times)
    }


def _matmul_seconds(size: int) -> float:
    with sharding.on_one_device():
        a = jnp.ones((size, size), jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16)
        return _best(jax.jit(lambda a: a @ a), a)


def _collective_seconds() -> float:
    """Time a sum over all devices of 4 MB each."""
    mesh = sharding.make_mesh(sharding.MeshConfig())
    rows = np.ones((jax.device_count(), 2**20), np.float32)
    with jax.set_mesh(mesh):
        x = sharding.put_rows(mesh, rows)
        return _best(jax.jit(lambda x: sharding.constrain(x.sum(0), (None,))), x)


def _best(function: Callable, x: jax.Array) -> float:
    """Return the seconds of the fastest of a few calls: others share the machine."""
    function(x).block_until_ready()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def _decodes(name: str, problems: list[str]) -> bool:
    try:
        av.codec.Codec(name, "r")
    except av.codec.codec.UnknownCodecError:
        problems.append(f"FFmpeg here cannot decode {name}: such clips will be rejected")
        return False
    return True


def _writes(name: str, problems: list[str]) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        problems.append(f"FFmpeg here cannot encode with {name}: videos cannot be written as .mp4")
        return False
    return True


def _try_workdir(workdir: str | Path, problems: list[str]) -> dict[str, Any]:
    """Write and delete a file of 64 MB in a workdir, and say how fast that was."""
    facts: dict[str, Any] = {"path": str(workdir)}
    try:
        folder = outputs.check_workdir(workdir, "--workdir")
    except UserError as error:
        problems.append(str(error))
        return facts
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if files.is_remote(folder):
        return facts | {"can_be_written": True}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(os.urandom(2**20) * (_FILE_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        problems.append(f"{there}: writing 64 MB failed ({error.strerror})")
        return facts
    return facts | {"bytes_per_s": _FILE_BYTES / (time.perf_counter() - start)}
