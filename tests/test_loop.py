"""What the training loop costs beside its steps."""

import jax
import pytest
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **facts: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    tokens, counts = write_tokens(tmp_path / "tokens"), {}
    for steps in (2, 8, 2):  # the first run also compiles what a process needs once
        compiled.clear()
        train(run_config(tokens, train__num_steps=steps, train__checkpoint_every=0), tmp_path / f"run{len(counts)}")
        counts[steps] = len(compiled)
    assert counts[8] == counts[2] > 0
