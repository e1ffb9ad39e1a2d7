"""What the training loop costs beside its steps."""

import jax
import numpy as np
import pytest
from tokens import one_device, run_config, write_tokens  # noqa: F401

from lumos import chips
from lumos.errors import UserError
from lumos.runtime import speed
from lumos.runtime.speed import SpeedMeter
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
        ({"data__buckets": ((2, 4, 4),)}, r"begins with another grid than config.sequence.grid=\(3, 4, 4\)"),
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


def test_utilisation_counts_every_step_with_the_flops_of_its_own_bucket(monkeypatch):
    shapes = [(4, 3, 4, 4), (4, 3, 4, 4), (12, 1, 4, 4)]
    cost = {(4, 3, 4, 4): 100.0, (12, 1, 4, 4): 7.0}
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr("lumos.runtime.speed.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed, "peak_flops_per_device", lambda: 50.0 / jax.device_count())
    meter = SpeedMeter(cost.__getitem__, 0)
    for shape in shapes:
        meter.count({"tokens": np.zeros(shape)}, 0.0)
    first, second = meter.take(2), meter.take(3)
    assert first["mfu"] == pytest.approx(200 / 2 / 50) and second["mfu"] == pytest.approx(7 / 3 / 50)
    assert first["positions_per_s"] == pytest.approx(2 * 192 / 2) and second["positions_per_s"] == pytest.approx(
        192 / 3
    )


def test_an_unknown_accelerator_has_no_utilisation(monkeypatch):
    class Device:
        platform, device_kind = "gpu", "NVIDIA GeForce RTX 9990"

    monkeypatch.setattr(speed.jax, "devices", lambda: [Device()])
    speed.peak_flops_per_device.cache_clear()
    try:
        assert speed.peak_flops_per_device() is None
        Device.device_kind = "TPU v5 lite"
        speed.peak_flops_per_device.cache_clear()
        assert speed.peak_flops_per_device() == chips.CHIPS["v5e"].flops == 197e12
    finally:
        speed.peak_flops_per_device.cache_clear()
    monkeypatch.setattr(speed, "peak_flops_per_device", lambda: None)
    meter = SpeedMeter(lambda shape: 1.0, 0)
    meter.count({"video": np.zeros((1, 5, 8, 8, 3))}, 0.0)
    assert "mfu" not in meter.take(1)


def test_every_device_kind_has_one_peak():
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds)) > 10
    # Data sheets: a chip of two devices gives each half, and the PCIe form of an H100 is slower than the module.
    assert chips.peak_of_device("TPU7x") == 2307e12 / 2 and chips.peak_of_device("NVIDIA H100 PCIe") is None
