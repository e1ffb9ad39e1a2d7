r"""Lumos-1 "3B" (3.6 B parameters; arXiv 2507.08801): as configs/lumos_1b.py, another size.

Run:       lumos train --config=configs/lumos_3b.py --workdir=... --config.data.path=TOKENS \
             --config.tokenizer_workdir=TOKENIZER
Expected:  not trained here; shapes and parameter counts are tested (tests/test_configs.py).
"""

from lumos.configs.lumos_1b import sized


def get_config(variant: str = ""):
    """Variants as in configs/lumos_1b.py."""
    return sized("3b", variant)
