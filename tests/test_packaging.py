"""`lumos.tokenizers` lives beside the PyPI package `tokenizers`."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def test_tokenizers_never_becomes_a_top_level_package():
    assert not (REPO / "tokenizers" / "__init__.py").exists()
    assert (REPO / "lumos" / "tokenizers").is_symlink() and (REPO / "lumos" / "configs").is_symlink()


@pytest.mark.parametrize(
    "first, second",
    [
        ("lumos.tokenizers.wavelet", "tokenizers"),
        pytest.param("tokenizers", "lumos.tokenizers.wavelet", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("folder", [pytest.param(REPO, marks=pytest.mark.slow), REPO.parent])
def test_both_import_in_either_order(first, second, folder):
    pytest.importorskip("transformers")
    code = (
        f"import sys; sys.path.insert(0, {str(REPO)!r}); import {first}, {second}; from tokenizers import Tokenizer; import transformers; "
        "from lumos.tokenizers.causal_vae import make_definition; assert Tokenizer.from_str"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


def test_no_tensorflow_and_no_torch_at_run_time():
    code = (
        "import sys, lumos.demo, lumos.videos.video_files; assert 'tensorflow_datasets' not in sys.modules; "  # takes a second
        "import lumos.data.moving_shapes; "
        "bad = {'tensorflow', 'torch'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True)
