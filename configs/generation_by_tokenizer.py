r"""Which tokenizer is better for generation: one 5M transformer and budget on the tokens of five of equal bits.

The data of the demo (moving_shapes, 9 frames of 48x48), 108 tokens of 10 bits a clip. `fsq_plain` is without the losses that
spread latents over the codes; `larp` and `larp_prior` differ in the prior's loss. Their tokens have no place: to the transformer
they are one frame, unmasked in as many steps as three of the others.
Runs:      lumos data shapes --config=configs/generation_by_tokenizer.py:fsq,tokenizer
           for t in fsq fsq_plain lfq larp larp_prior; do
             lumos train    --config=configs/generation_by_tokenizer.py:$t,tokenizer   --workdir=by_tokenizer/$t/tokenizer
             lumos tokenize --config=configs/generation_by_tokenizer.py:$t,tokenizer   --workdir=by_tokenizer/$t/tokenizer \
                            --out=by_tokenizer/$t/tokens
             lumos train    --config=configs/generation_by_tokenizer.py:$t,transformer --workdir=by_tokenizer/$t/transformer
             lumos evaluate --workdir=by_tokenizer/$t/transformer --out=by_tokenizer/$t/report
           done
Expected:  docs/results.md: `fsq_plain` follows prompts best (shapes 81 %, directions 97 %), `fsq` 58 and 86 %; `lfq` and `larp` lose
           the shapes in the tokenizer (31 and 28 %); `larp_prior` has 20 and 97 %. About 4 minutes and 16 minutes each.
"""

from lumos.configs.demo import get_config as demo


def get_config(variant: str = "fsq,transformer"):
    """Variants: (fsq | fsq_plain | lfq | larp | larp_prior),(tokenizer | transformer), each also with ",smoke"."""
    kind, *rest = variant.split(",")
    config = demo(",".join(rest))
    config.name = f"{kind} {config.task}"
    config.tokenizer_workdir = f"by_tokenizer/{kind}/tokenizer"
    holistic, t = kind.startswith("larp"), config.tokenizer
    quantizer = "svq" if holistic else kind.removesuffix("_plain")
    t.levels = {"fsq": (8, 5, 5, 5), "lfq": (2,) * 10, "svq": (1024,)}[quantizer]
    if config.task == "tokenizer":
        config.data.path = "by_tokenizer/moving_shapes"
        t.quantizer, t.entropy_boost_steps = quantizer, 300
        if kind == "fsq":  # settings of short runs, as in tokenizer_quantizers.py
            t.fsq_entropy_weight, t.fsq_latent_weight = 0.003, 0.001
        if kind == "lfq":
            t.entropy_temperature, t.entropy_weight, t.commitment_weight = 0.5, 0.008, 0.02
        if holistic:
            t.body, t.clip, t.num_queries = "holistic", config.data.buckets[0], 32 if "smoke" in rest else 108
            t.channels, t.num_res_blocks, t.code_dim = 192, 4, 16
            t.prior_weight, t.entropy_weight = 0.001 if kind == "larp_prior" else 0.0, 0.02
        config.optimizer.learning_rate = 2e-3 if holistic else 3e-3
    else:
        config.data.path = f"by_tokenizer/{kind}/tokens"
        config.model.model_dim, config.model.mlp_dim, config.model.num_heads = 256, 704, 4
        config.model.code_levels = ()  # the codes of larp have no digits to share
        config.train.num_steps = 1200
        if holistic:
            config.generate.steps *= 3
    if "smoke" in rest:
        t.channels, t.num_res_blocks = 32 if holistic else 8, 1
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim, config.model.num_heads = 2, 64, 128, 2
    return config
