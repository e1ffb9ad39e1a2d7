"""docs/pytorch_reference.py computes what lumos does, from the files of a release."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.layouts import make_layout
from lumos.model.transformer import make_definition
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import layout_ranges
from lumos.slots import slot
from lumos.tokenizers.causal_vae import make_definition as make_vae
from lumos.weights import release, safetensors_files

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pytorch_reference.py"
torch = pytest.importorskip(
    "torch", reason="torch is large, so it is not among the packages of the tests: pip install torch"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("pytorch_reference", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "lumos" not in [name.split(".")[0] for name in vars(module)]
    return module


def write(folder, config, task, definition):
    """Write random weights (none of them at zero, where layers start) as `lumos export` does; return them."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), definition.abstract)
    config.save(folder / "config.json")
    safetensors_files.write(folder, release.tensors_of(task, definition, params))
    return params


@pytest.mark.parametrize("changes", [{}, {"model__qk_norm": "rms", "model__post_norm": True}, {"model__qk_norm": "none", "model__attention_bias": True}, {"model__qk_norm_groups": 2, "model__num_heads": 4, "model__num_kv_heads": 2}, {"model__code_levels": (5, 6)}])  # fmt: skip
def test_logits(reference, tmp_path, changes):
    config = tiny.transformer(**changes)
    layout = make_layout(config)
    definition = make_definition(config.model, layout.vocabulary)
    params = write(tmp_path, config, "transformer", definition)
    batch = tiny.token_batch(config)
    hidden = np.random.default_rng(1).random(batch["tokens"].shape) < 0.5
    ids = layout.assemble(batch["text"], batch["tokens"])
    ids = ids.at[:, layout.visual_index].set(
        jnp.where(hidden.reshape(len(hidden), -1), layout.vocabulary.mask, ids[:, layout.visual_index])
    )
    model = definition.bind(params)
    first_B = layout.first_key(jnp.asarray(batch["text_length"]))
    keys = KeyRanges.of(layout_ranges(layout, config.sequence.attention), first_B)
    x = model.hidden(ids, layout.positions, keys)[:, layout.visual_index]
    v = layout.vocabulary
    expected = x @ model.head(v.visual_start, v.visual_end)
    inputs = (torch.tensor(batch[name], dtype=torch.long) for name in ("text", "text_length", "tokens"))
    found = reference.Transformer(tmp_path).logits(*inputs, torch.tensor(hidden))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("changes", [
    {}, {"tokenizer__outer_norm": True, "tokenizer__patch_size": 2, "tokenizer__channel_mult": (1, 2, 2)}, {"tokenizer__norm": "position", "tokenizer__temporal_window": 2, "tokenizer__spatial_compression": 16},
])  # fmt: skip
def test_tokens_and_pixels(reference, tmp_path, changes):
    config = tiny.transformer(task="tokenizer", data__buckets=((13, 32, 48),), tokenizer__channels=8, **changes)
    definition = make_vae(config.tokenizer)
    params = write(tmp_path, config, "tokenizer", definition)
    video = np.random.default_rng(2).uniform(-1, 1, (2, 13, 32, 48, 3)).astype(np.float32)
    model, vae = definition.bind(params), reference.CausalVAE(tmp_path)
    tokens = np.asarray(model.encode(video))
    assert (
        np.mean(vae.encode(torch.tensor(video)).numpy() == tokens) > 0.999
    )  # a latent on the border of two codes may fall on either side
    expected = np.asarray(model.decode(tokens))
    np.testing.assert_allclose(vae.decode(torch.tensor(tokens)), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_other_methods_are_refused(reference, tmp_path):
    config = tiny.transformer(sequence__layout=slot("compact", block=(0, 0, 0)))
    config.save(tmp_path / "config.json")
    with pytest.raises(SystemExit, match="this reference has"):
        reference.Transformer(tmp_path)
