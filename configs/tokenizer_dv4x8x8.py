"""The exact network of Cosmos-0.1-Tokenizer-DV4x8x8, which Lumos-1 uses: 104,669,558 parameters, 64,000 codes.

Run:       lumos train --config=configs/tokenizer_dv4x8x8.py --workdir=... --config.data.path=clips.jsonl
Expected:  not trained here; the network equals the released one (tests/test_causal_vae.py).
"""

from lumos.configs.tokenizer_sizes import get_config as sizes


def get_config(variant: str = ""):
    """Variant "smoke" narrows the network and shrinks the run."""
    config = sizes("b,smoke" if variant == "smoke" else "b")
    config.name = "tokenizer dv4x8x8"
    config.tokenizer.outer_norm = True
    return config
