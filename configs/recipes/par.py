"""PAR: Parallelized Autoregressive Visual Generation (arXiv 2412.15119).

Mechanism:  frames are divided into 2 x 2 regions; the first codes of all regions come one by one, then the same place of every region at
            once: distant codes hardly depend on one another. A code predicts that of the next place in its region; start tokens at the
            turn from single codes to groups are the paper's transition tokens.
Not here:   learnt transition tokens of their own for each region (they share one embedding and differ in position).
Published:  UCF-101 FVD 94.1 (1 region), 99.5 (4), 103.4 (16) in 1,280, 323 and 95 passes; ImageNet FID 2.29 with 4 regions, 10.05 where
            adjacent codes are parallel, 5.87 without the sequential start.
Run:        lumos train --config=configs/recipes/par.py --workdir=par --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=par --prompt="a red circle moves left" --out=par.mp4
Expected:   not measured yet.
Law:        tests/test_recipes.py::test_par_generates_the_same_place_of_all_regions_and_one_region_is_next_token
Figure:     none yet
"""

from lumos.configs.recipes.next_token import get_config as next_token
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = next_token(variant)
    config.name = "par"
    config.sequence.layout = slot("regions", rows=2, columns=2)
    return config
