"""`lumos plan`: will it fit, how fast will it be, what travels - without the machine."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

from lumos import sharding
from lumos.chips import Topology, parse_topology
from lumos.config import Config
from lumos.errors import UserError
from lumos.planning import aot, estimate, search
from lumos.planning.report import Plan, table

_log = logging.getLogger(__name__)
PURPOSES = {
    "train": (estimate.estimate_train, aot.compile_train),
    "generate": (estimate.estimate_generate, aot.compile_generate),
    "tokenizer": (estimate.estimate_tokenizer, aot.compile_train),
}


def make_plan(config: Config, topology: Topology, purpose: str, *, compile: bool) -> Plan:
    """Estimate a step, and compile it where the topology is a TPU. Raises UserError for what cannot be planned."""
    config = estimate.fill_vocabulary_sizes(config)
    estimator, compiler = PURPOSES[purpose]
    guess, mesh = estimator(config, topology), estimate.mesh_sizes(config, topology)
    compiled = None
    if compile and topology.is_tpu:
        with _progress(f"compiling the {purpose} step for {topology}"):
            compiled = compiler(config, sharding.make_mesh(config.mesh, aot.devices(topology)))
    plan = Plan(config, topology, purpose, mesh, guess, compiled)
    if not plan.fits and purpose == "train":
        plan = Plan(config, topology, purpose, mesh, guess, compiled, search.suggestion(config, topology))
    return plan


def plan(
    config: Config, topology: str, purpose: str = "", *, compile: bool = True, find: bool = False, json: bool = False
):
    """Run the command: print the table, and the JSON line last if asked for.

    Raises UserError if a TPU is to be compiled for and libtpu is not installed.
    """
    place = parse_topology(topology)
    if config.task == "actions":
        raise UserError(
            "lumos plan knows transformers and tokenizers; --dry_run of lumos train measures a run with task 'actions'"
        )
    purpose = purpose or ("tokenizer" if config.task == "tokenizer" else "train")
    if purpose not in PURPOSES:
        raise UserError(f"--for={purpose!r} must be one of {', '.join(PURPOSES)}")
    if (purpose == "tokenizer") != (config.task == "tokenizer"):
        raise UserError(f"--for={purpose} does not go with a config whose task is {config.task!r}")
    if compile and place.is_tpu and not aot.is_available():
        raise UserError(
            "compiling for a TPU needs libtpu: pip install 'lumos-video[tpu-plan]', or take the estimate with --compile=false"
        )
    if find:
        if purpose != "train":
            raise UserError("--search looks for train steps of transformers")
        config = _search(estimate.fill_vocabulary_sizes(config), place)
    result = make_plan(config, place, purpose, compile=compile)
    print(table(result))
    if json:
        print(result.to_json())


def _search(config: Config, topology: Topology) -> Config:
    found = search.search(config, topology)
    print(f"best plans on {topology} by the estimate:")
    for candidate, guess in found:
        mesh = " ".join(f"--config.mesh.{a}={getattr(candidate.mesh, a)}" for a in sharding.MESH_AXES)
        print(
            f"  MFU {guess.roofline.mfu:.1%}  {guess.memory.total / 2**30:6.2f} GiB  {mesh} "
            f"--config.data.batch_size={candidate.data.batch_size} --config.model.remat={candidate.model.remat}"
        )
    print()
    return found[0][0]


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say every few seconds that the compiler is still at work: a large step takes minutes."""
    done, start = threading.Event(), time.perf_counter()

    def tick():
        while not done.wait(10):
            print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _log.info("%s took %.0f s", what, time.perf_counter() - start)
