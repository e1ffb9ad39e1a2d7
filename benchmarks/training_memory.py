"""What holds the memory of a training process, and what rematerialisation costs and saves.

    python benchmarks/training_memory.py [--sizes=1m,5m,20m] [--policies=none,minimal,dots,full] [--grid=16,8,8] [--batch=4] [--rounds=4] [--train]

Every size and policy is a process of its own that trains configs/transformer_small.py on made-up tokens. Prints a line of JSON for each:
gigabytes resident after the imports, with the state, after the compilation, after what it left behind was given back, and at most in
steps; what the compiler reserves for the state and for temporary values; seconds of a step (median), and its page faults and seconds in
the kernel. Compiled programs are kept in a temporary folder: a first process of each kind, which compiles, is not counted.

With --train the processes are those of `lumos train`, cold and then warm, with its data, checkpoints and evaluation: gigabytes at most.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from many_clips import rss_gb
from warm_start import write_tokens


def measure(size: str, policy: str, grid: tuple[int, ...], batch: int, rounds: int) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lumos import config_loading, sharding
    from lumos.configs.transformer_small import get_config
    from lumos.evaluation.evaluate import versions
    from lumos.runtime.compiler_memory import give_back
    from lumos.runtime.speed import resident_bytes
    from lumos.training.from_config import make_objective, make_objective_optimizer
    from lumos.training.state import new_state
    from lumos.training.step import make_update

    resident_gb = lambda: round(resident_bytes() / 1e9, 3)
    found = {"size": size, "remat": policy, "imports_gb": resident_gb()}
    config = get_config(size)
    config.sequence.grid, config.data.batch_size, config.model.remat = grid, batch, policy
    config.model.visual_vocab, config.model.text_vocab = 1024, 512
    config = config_loading.parse(config)
    objective = make_objective(config)
    optimizer = make_objective_optimizer(objective, config)
    rng, text = np.random.default_rng(0), (batch, config.sequence.text_length)
    rows = {
        "tokens": jnp.asarray(rng.integers(0, 1024, (batch, *grid)), jnp.int32),
        "text": jnp.asarray(rng.integers(4, 512, text), jnp.int32),
        "text_length": jnp.full(batch, text[1], jnp.int32),
    }
    with jax.set_mesh(sharding.make_mesh(config.mesh, jax.local_devices()[:1])):
        new = functools.partial(new_state, objective.definition, optimizer, ema=config.optimizer.ema_decay > 0)
        state = jax.block_until_ready(jax.jit(new)(jnp.uint32(0), None))
        found["state_gb"] = resident_gb()
        update = jax.jit(make_update(objective, optimizer, config), donate_argnums=0)
        step = update.lower(state, rows, jnp.uint32(0)).compile()
        found["compiled_gb"] = resident_gb()
        give_back()
        found["given_back_gb"], reserved = resident_gb(), step.memory_analysis()
        seconds, kernel, faults = [], [], []
        for _ in range(rounds + 1):
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            state, metrics = step(state, rows, jnp.uint32(0))
            jax.block_until_ready(state)
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds.append(time.perf_counter() - start)
            kernel.append(after.ru_stime - before.ru_stime)
            faults.append(after.ru_minflt - before.ru_minflt)
    median = lambda values: round(statistics.median(values[1:]), 3)
    return found | {
        "peak_gb": round(rss_gb() * 2**30 / 1e9, 3),
        "state_mb": round(reserved.argument_size_in_bytes / 1e6),
        "temporary_mb": round(reserved.temp_size_in_bytes / 1e6),
        "step_s": median(seconds), "kernel_s": median(kernel), "page_faults": int(median(faults)),
        "loss": float(metrics["loss"]), "parameters": objective.definition.num_params, "versions": versions(),
    }  # fmt: skip


def train(size: str, policy: str, grid: tuple[int, ...], batch: int, folder: Path) -> dict:
    """Return the gigabytes that `lumos train` holds at most: one that compiles, and one that finds its programs."""
    tokens, found = folder / "tokens", {"size": size, "remat": policy}
    tokens.mkdir(exist_ok=True)
    write_tokens(tokens, grid)
    workdir = folder / f"{size} {policy}"
    for name, steps in (("cold", 8), ("warm", 16)):
        command = [
            sys.executable, "-m", "lumos", "train", f"--config=configs/transformer_small.py:{size}", f"--workdir={workdir}",
            f"--config.data.path={tokens}", "--config.tokenizer_workdir=", f"--config.train.num_steps={steps}", "--config.train.num_samples=0",
            f"--config.data.batch_size={batch}", f"--config.model.remat={policy}", "--config.train.eval_batches=1",
            "--config.train.checkpoint_every=4", "--config.sequence.grid=(0,0,0)",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        found[f"{name}_gb"] = round(usage.ru_maxrss * 1024 / 1e9, 3)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="1m,5m,20m")
    parser.add_argument("--policies", default="none,minimal,dots,full")
    parser.add_argument("--grid", default="16,8,8")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    grid = tuple(map(int, args.grid.split(",")))
    if args.one:
        print(json.dumps(measure(*args.one.split(","), grid, args.batch, args.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        tunables = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")}  # as `lumos train`
        for size in args.sizes.split(","):
            for policy in args.policies.split(","):
                if args.train:
                    print(json.dumps(train(size, policy, grid, args.batch, Path(folder))), flush=True)
                    continue
                command = [sys.executable, __file__, f"--one={size},{policy}", f"--grid={args.grid}"]
                command += [f"--batch={args.batch}", f"--rounds={args.rounds}"]
                run = functools.partial(
                    subprocess.run, command, env=os.environ | cache | tunables, check=True, text=True
                )
                run(stdout=subprocess.DEVNULL)
                print(run(stdout=subprocess.PIPE).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
