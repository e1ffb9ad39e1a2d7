"""Memory of the compiler is given back when it has compiled, before the program runs."""

import jax
import numpy as np
import pytest

from lumos.runtime import compiler_memory


@pytest.mark.parametrize("seconds, calls", [(0.0, 2), (1e9, 0)])
def test_it_is_given_back_between_compiling_and_running(monkeypatch, seconds, calls):
    done, listeners = [], []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    monkeypatch.setattr(compiler_memory, "_SECONDS", seconds)
    monkeypatch.setattr(compiler_memory, "give_back", lambda: done.append("given back"))
    compiler_memory.give_back_after_compiling.__wrapped__()
    (listener,) = listeners
    for event in (compiler_memory._EVENT, "/jax/core/compile/jaxpr_trace_duration", compiler_memory._EVENT):
        listener(event, 2.0, fun_name="step")
    assert len(done) == calls


def test_arrays_live_on():
    before = np.arange(1_000_000)
    compiler_memory.give_back()
    np.testing.assert_array_equal(before, np.arange(1_000_000))


def test_the_event_is_that_of_jax():
    """The name is no interface of JAX: a compilation must report it, before the call that compiles returns."""
    seen = []
    listen = lambda event, seconds, **_: seen.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3 + 17)(np.arange(7))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiler_memory._EVENT in seen
