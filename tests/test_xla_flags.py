"""YNNPACK, whose sums are wrong in jaxlib 0.10.2, is switched off wherever lumos is imported."""

import os
import subprocess
import sys

import jaxlib
import pytest

from lumos.runtime.xla_flags import avoid_ynnpack

OFF = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.mark.parametrize(
    "before, after", [("", OFF), ("--other=1", f"--other=1 {OFF}"), (OFF, OFF), (f"{OFF}-reduce", f"{OFF}-reduce")]
)
def test_other_flags_and_the_users_own_choice_are_kept(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    avoid_ynnpack()
    assert os.environ["XLA_FLAGS"] == after


def wrong_sums(flags):
    code = "import lumos; from lumos import doctor; print(doctor._wrong_sums())"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_products_are_summed_rightly():
    assert wrong_sums("") == "[]\n"


@pytest.mark.skipif(jaxlib.__version__ != "0.10.2", reason="the bug is in jaxlib 0.10.2")
def test_the_doctor_sees_the_bug():
    assert "sums wrongly" in wrong_sums(f"{OFF}individual_dot,reduce")
