"""StreamingT2V: Consistent, Dynamic, and Extendable Long Video Generation from Text (arXiv 2403.14773).

Mechanism:  a window of recent frames (the conditional attention module), and the first frame through a gate SiLU(alpha) for each layer that
            begins closed (the appearance module).
Not here:   CLIP features of the anchor frame (its codes instead); chunks of 16 frames with 8 in common; the enhancer with its random seams.
Published:  240 frames: MAWE 52.3 (SVD 857), scene cuts 0.04, CLIP 31.7; more than 1,200 frames with a stable MAWE.
Run:        lumos train --config=configs/recipes/streaming_t2v.py --workdir=streaming_t2v --config.data.path=TOKENS --config.tokenizer_workdir=TOKENIZER
            lumos generate --workdir=streaming_t2v --prompt="a red circle moves left" --frames=401 --out=streaming_t2v.mp4
Expected:   not measured yet.
Law:        tests/test_gates.py::test_a_gate_starts_closed_and_learns
Figure:     none yet
"""

from lumos.configs.recipes.diffusion_forcing import get_config as diffusion_forcing
from lumos.slots import slot


def get_config(variant: str = "5m"):
    """Variants as in configs/transformer_small.py."""
    config = diffusion_forcing(variant)
    config.name = "streaming t2v"
    width = max(config.sequence.grid[0] // 2, 2)
    config.model.mixer = slot("gated")
    config.sequence.attention = slot("gated_window", width=width, sink=1)
    config.generate.cache = slot("window", width=width, sink=1)
    return config
