"""How many codes each pass of unmasking keeps (T6)."""

import numpy as np

from lumos.findings.finding import Exact, Statement
from lumos.generation.plan import cosine


def get_finding() -> Exact:
    return Exact(
        name="unmasking",
        claim="The cosine schedule keeps few codes at first and many at last, and all of them in the end.",
        paper="MaskGIT (arXiv 2202.04200); Lumos-1 (arXiv 2507.08801), section 3.4",
        published="codes kept in each of 50 passes over 1,792 and 4,032 codes",
        statements=(
            Statement("1,792 codes, first eight passes", [1, 3, 4, 7, 8, 9, 12, 13], lambda: _kept(1792)[:8]),
            Statement("1,792 codes, most in a pass", 56, lambda: max(_kept(1792))),
            Statement("1,792 codes, all passes together", 1792, lambda: sum(_kept(1792))),
            Statement("4,032 codes, first five passes", [2, 6, 10, 14, 18], lambda: _kept(4032)[:5]),
            Statement("4,032 codes, most in a pass", 127, lambda: max(_kept(4032))),
            Statement("4,032 codes, all passes together", 4032, lambda: sum(_kept(4032))),
        ),
    )


def _kept(num):
    return np.diff(num - np.concatenate([[num], cosine(num, 50)])).tolist()
