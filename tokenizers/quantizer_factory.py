"""Builds the quantiser that a config names: a family, alone or composed."""

from __future__ import annotations

from flax import nnx

from lumos.config import TokenizerConfig
from lumos.tokenizers import composed_quantizers as composed
from lumos.tokenizers import lookup_free, vector_quantizers
from lumos.tokenizers.quantizers import FSQ, Quantizer


def make_quantizer(config: TokenizerConfig, rngs: nnx.Rngs) -> Quantizer:
    """Build the quantiser that `config.quantizer` and `config.composition` name."""
    families = {
        "fsq": lambda: FSQ(config.levels, config.fsq_entropy_weight, config.fsq_latent_weight),
        "lfq": lambda: lookup_free.LFQ(config),
        "bsq": lambda: lookup_free.BSQ(config),
        "vq": lambda: vector_quantizers.VQ(config, rngs),
        "simvq": lambda: vector_quantizers.SimVQ(config, rngs),
        "svq": lambda: vector_quantizers.SVQ(config, rngs),
        "ibq": lambda: vector_quantizers.IBQ(config, rngs),
    }
    if config.composition == "single":
        return families[config.quantizer]()
    if config.composition == "residual" and config.quantizer == "fsq":
        return composed.ResidualFSQ(config)
    parts = [families[config.quantizer]() for _ in range(config.parts)]
    kinds = {"grouped": composed.Grouped, "residual": composed.Residual, "layers": composed.CoarseToFine}
    return kinds[config.composition](parts, config, rngs)
