import os
import signal

import jax.numpy as jnp
import pytest

from lumos.runtime.goodput import BUCKETS, Goodput
from lumos.runtime.profiler import Profiler


class _Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


def test_buckets_add_up_to_the_wall_time_over_restarts(tmp_path):
    clock, path = _Clock(), tmp_path / "goodput.json"
    for _ in range(2):
        goodput = Goodput(path, clock)
        for bucket, seconds in (("init", 3), ("compile", 5), ("step", 10), ("data", 1), ("eval", 2), ("checkpoint", 4)):
            goodput.enter(bucket)
            clock.wait(seconds)
        goodput.save()
        clock.wait(25)  # nobody is running
    last = Goodput(path, clock)
    clock.wait(50)
    shares = last.shares()
    assert last.wall_seconds == clock.now - 100
    assert shares["time_idle"] == pytest.approx(50 / 150) and shares["time_init"] == pytest.approx(56 / 150)
    assert shares["goodput"] == shares["time_step"] == pytest.approx(20 / 150)
    assert sum(shares[f"time_{name}"] for name in BUCKETS) == pytest.approx(1)


def test_unknown_buckets_are_refused():
    with pytest.raises(ValueError, match="known: init"):
        Goodput(None).enter("lunch")


def test_profiles_are_taken_at_a_step_and_on_sigusr1(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    profiler = Profiler(tmp_path, at=2, num_steps=1)
    traces = []
    for step in range(7):
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler.step(step)
        jnp.ones(4).sum().block_until_ready()
        traces.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    profiler.close()
    assert traces == [0, 0, 0, 1, 1, 1, 2] and signal.getsignal(signal.SIGUSR1) == before
