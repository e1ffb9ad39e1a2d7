"""config.json of a released Lumos-1 checkpoint <-> the model, vocabulary and sequence sections of a lumos config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumos.config import ModelConfig
from lumos.errors import UserError
from lumos.sequence.tokens import H_SCALE
from lumos.sequence.vocabulary import RELEASED_SPECIAL, Vocabulary, lumos1

# Official field -> ours, where the value carries over as it is.
_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "model_dim",
    "intermediate_size": "mlp_dim",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "swin_norm": "post_norm",
    "model_parallel_size": "qk_norm_groups",
}
# Defaults of the official configuration class, for fields that a config.json may leave out.
_DEFAULTS = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "swin_norm": False,
    "model_parallel_size": 1,
    "hidden_act": "silu",
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
# What the architecture here cannot represent: field -> (accepted value, why).
_REQUIRED = {
    "hidden_act": ("silu", "the MLP is SwiGLU"),
    "rope_scaling": (None, "scaled rotary frequencies are not part of Lumos-1"),
    "tie_word_embeddings": (False, "Lumos-1 has an lm_head of its own"),
}
_SPECIAL_NAMES = {"sep": "separator"}  # official name without "_token" -> ours, where they differ


def read(directory: str | Path) -> dict[str, Any]:
    """Return config.json of a checkpoint directory. Raises UserError."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a checkpoint directory: no config.json in it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def model_config(official: Mapping[str, Any], vocabulary: Vocabulary, dtype: str) -> ModelConfig:
    """Translate an official config to ours. Raises UserError for a variant that cannot be represented exactly."""
    values = _DEFAULTS | {name: value for name, value in official.items() if value is not None or name not in _DEFAULTS}
    for name, (accepted, reason) in _REQUIRED.items():
        if values[name] != accepted:
            raise UserError(f"config.json: {name}={values[name]!r} cannot be loaded, only {accepted!r}: {reason}")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} must be float32 or bfloat16")
    values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
    missing = [name for name in (*_FIELDS, "vocab_size") if values.get(name) is None]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    if values["vocab_size"] != vocabulary.size:
        raise UserError(f"config.json: vocab_size {values['vocab_size']} is not the vocabulary's {vocabulary.size}")
    heads, dim = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim") or dim // heads
    if head_dim * heads != dim or head_dim % 32:
        raise UserError(
            f"config.json: hidden_size {dim} with {heads} heads gives head_dim {dim / heads:g}; MM-RoPE needs a multiple of 32"
        )
    kv_heads, groups = values["num_key_value_heads"], values["model_parallel_size"]
    if heads % kv_heads or groups < 1 or kv_heads % groups:
        raise UserError(
            f"config.json: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}, and that of "
            f"model_parallel_size {groups}"
        )
    ours = {our: values[theirs] for theirs, our in _FIELDS.items()}
    ours |= {name: float(ours[name]) for name in ("rope_theta", "norm_eps")}
    return ModelConfig(
        **ours,
        head_dim=head_dim,
        text_vocab=vocabulary.visual_start,
        visual_vocab=vocabulary.visual_size,
        qk_norm="layer",
        rope="mm" if values.get("mm_rope", True) else "1d",
        dtype=dtype,
        param_dtype=dtype,
    )


def official_config(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the config.json that describes a model trained here. Raises UserError if it has no official form."""
    unknown = {
        "qk_norm": model.qk_norm == "layer",
        "rope": model.rope in ("mm", "1d"),
        "code_levels": not model.code_levels,
    }
    if not all(unknown.values()):
        names = ", ".join(f"model.{name}={getattr(model, name)!r}" for name, fits in unknown.items() if not fits)
        raise UserError(f"the released Lumos-1 architecture has no equivalent of {names}")
    return {
        "architectures": ["ChameleonMMRoPEForConditionalGeneration"],
        "model_type": "chameleon",
        **_DEFAULTS,
        **{theirs: getattr(model, our) for theirs, our in _FIELDS.items()},
        "vocab_size": vocabulary.size,
        "mm_rope": model.rope == "mm",
        "torch_dtype": model.param_dtype,
    }


def make_vocabulary(
    vocab_size: int, special_tokens: Mapping[str, int] | None, size_token_zero: int, visual_start: int
) -> Vocabulary:
    """Build the vocabulary: released markers, or those of `special_tokens` ("image_start_token" or "image_start" style).

    Raises UserError on an unknown name or an id outside the text part of the table.
    """
    special = dict(RELEASED_SPECIAL)
    for name, token in (special_tokens or {}).items():
        short = name.removesuffix("_token")
        short = _SPECIAL_NAMES.get(short, short)
        if short not in special:
            raise UserError(f"special_tokens: unknown name {name!r}; known: {', '.join(f'{n}_token' for n in special)}")
        special[short] = int(token)
    if not 0 < visual_start < vocab_size:
        raise UserError(f"visual_start {visual_start} leaves no visual tokens in a vocabulary of {vocab_size}")
    outside = {name: token for name, token in special.items() if not 0 <= token < visual_start}
    if outside:
        raise UserError(
            f"special tokens {outside} lie outside the text ids [0, {visual_start}); give special_tokens, size_token_zero "
            "and visual_start of this vocabulary"
        )
    return lumos1(vocab_size - visual_start, visual_start, size_token_zero, special)


def size_unit(token_patch_size: int) -> int:
    """Return how many latent cells one unit of the size tokens is. Raises UserError."""
    if token_patch_size < H_SCALE or token_patch_size % H_SCALE:
        raise UserError(f"token_patch_size {token_patch_size} must be a multiple of the cell size {H_SCALE} (pixels)")
    return token_patch_size // H_SCALE


def special_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return config.sequence.special_tokens of a vocabulary; () for the released ids."""
    ids = tuple(getattr(vocabulary, name) for name in RELEASED_SPECIAL)
    return () if ids == tuple(RELEASED_SPECIAL.values()) else ids


def hidden_logits(official: Mapping[str, Any]) -> list[int]:
    """Return the ids whose logits the official model hides: Chameleon's own image codes, if `mask_image_logits` is set."""
    if not official.get("mask_image_logits"):
        return []
    names = official.get("vocabulary_map") or {}
    return sorted(token for name, token in names.items() if name.startswith("IMGIMG"))
