"""What tiling costs: PSNR between a clip decoded in tiles and decoded whole, and the share of tokens that differ.

    python benchmarks/tiling.py --workdir=TOKENIZER --video=CLIP.mp4 [--side=256] [--frames=17]

For tiles of half and of a quarter of the side, without overlap and with an overlap of a quarter of the tile. Prints JSON.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from lumos.data.video import read_clip
from lumos.evaluation.evaluate import versions
from lumos.tokenizers import pretrained
from lumos.tokenizers.causal_vae import make_definition
from lumos.tokenizers.pixel_quality import psnr, to_float, to_uint8
from lumos.tokenizers.tiling import apply_tiled


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--video", required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--frames", type=int, default=17)
    arguments = parser.parse_args()
    tokenizer = pretrained.load(arguments.workdir)
    definition, params = make_definition(tokenizer.config), tokenizer.params
    side, cell = arguments.side, tokenizer.config.spatial_compression
    video = read_clip(arguments.video, num_frames=arguments.frames, height=side, width=side)[None]
    latents = jax.jit(lambda params, video: definition.bind(params).latents(to_float(video)))
    quantize = jax.jit(lambda params, z: definition.bind(params).quantizer(z).indices)
    decode = jax.jit(lambda params, tokens: definition.bind(params).decode(tokens))
    tokens = np.asarray(quantize(params, latents(params, video)))
    whole = to_uint8(decode(params, tokens))
    results = {"psnr_whole": float(psnr(whole, video)[0]), "tiles": []}
    for tile in (side // 2, side // 4):
        for overlap in (0, tile // 4 // cell * cell):
            z = apply_tiled(lambda x: latents(params, x), video, tile, overlap, 1 / cell)
            made = apply_tiled(
                lambda x: decode(params, x[..., 0]), tokens[..., None], tile // cell, overlap // cell, cell
            )
            found = {
                "tile": tile,
                "overlap": overlap,
                "tokens_that_differ": float(np.mean(np.asarray(quantize(params, jnp.asarray(z))) != tokens)),
                "psnr_to_whole": float(psnr(to_uint8(made), whole)[0]),
                "psnr": float(psnr(to_uint8(made), video)[0]),
            }
            results["tiles"].append(found)
    print(json.dumps({**results, "side": side, "frames": arguments.frames, "versions": versions()}, indent=1))


if __name__ == "__main__":
    main()
