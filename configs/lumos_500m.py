r"""Lumos-1 "0.5B" (0.5 B parameters; arXiv 2507.08801): as configs/lumos_1b.py, another size.

Run:       lumos train --config=configs/lumos_500m.py --workdir=... --config.data.path=TOKENS \
             --config.tokenizer_workdir=TOKENIZER
Expected:  not trained here; shapes and parameter counts are tested (tests/test_configs.py).
"""

from lumos.configs.lumos_1b import sized


def get_config(variant: str = ""):
    """Variants as in configs/lumos_1b.py."""
    return sized("500m", variant)
