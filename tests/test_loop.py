"""What the training loop costs beside its steps."""

import jax
import pytest
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos.errors import UserError
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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__eval_split": "test"}, "no shards of split 'test'; there are: train, validation"),
        ({"train__num_samples": 2}, "needs config.tokenizer_workdir"),
        ({"data__buckets": ((5, 32, 32),)}, r"is a grid of \(2, 4, 4\), but config.sequence.grid=\(3, 4, 4\)"),
        ({"model__text_vocab": 100}, "smaller than the text vocabulary"),
    ],
)
def test_what_the_end_of_a_run_needs_is_asked_for_at_its_start(tmp_path, changes, message):
    config = run_config(write_tokens(tmp_path / "tokens"), **changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_transformer_trains_on_a_weighted_mixture(tmp_path):
    first, second = (write_tokens(tmp_path / name) for name in "ab")
    train(run_config(f"{first}=3,{second}=1", train__num_steps=2), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
