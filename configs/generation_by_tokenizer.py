"""Which tokenizer is better for generation: one 5M transformer and budget on the tokens of four of equal bits.

moving_shapes (medium), 17 frames of 64x64, 320 tokens of 10 bits a clip. `larp` and `larp_prior` differ in the prior's loss.
Runs:      lumos data shapes --config=configs/generation_by_tokenizer.py:fsq,tokenizer
           for t in fsq lfq larp larp_prior; do
             lumos train    --config=configs/generation_by_tokenizer.py:$t,tokenizer   --workdir=by_tokenizer/$t/tokenizer
             lumos tokenize --config=configs/generation_by_tokenizer.py:$t,tokenizer   --workdir=by_tokenizer/$t/tokenizer \\
                            --out=by_tokenizer/$t/tokens
             lumos train    --config=configs/generation_by_tokenizer.py:$t,transformer --workdir=by_tokenizer/$t/transformer
             lumos evaluate --workdir=by_tokenizer/$t/transformer --out=by_tokenizer/$t/report
           done
Expected:  not measured yet; compare masked cross-entropy and prompt following.
"""

from lumos import config as lumos_config

_TOKENS = 320


def get_config(variant: str = "fsq,transformer"):
    """Variants: (fsq | lfq | larp | larp_prior),(tokenizer | transformer), each also with ",smoke"."""
    kind, task, *options = variant.split(",")
    config = lumos_config.default()
    config.name, config.task = f"{kind} {task}", task
    holistic = kind.startswith("larp")
    config.shapes.level = "medium"
    config.data.buckets = ((17, 64, 64),)
    config.tokenizer_workdir = f"by_tokenizer/{kind}/tokenizer"
    t = config.tokenizer
    if task == "tokenizer":
        config.data.path = "by_tokenizer/moving_shapes"
        t.l1_weight, t.l2_weight = 0.2, 1.0
        if holistic:
            t.body, t.clip, t.num_queries = "holistic", (17, 64, 64), _TOKENS
            t.quantizer, t.levels, t.code_dim = "svq", (1024,), 16
            t.channels, t.num_res_blocks = 192, 4
            t.prior_weight = 0.06 if kind == "larp_prior" else 0.0
        else:
            t.quantizer, t.levels = kind, {"fsq": (4,) * 5, "lfq": (2,) * 10}[kind]
            t.channels, t.channel_mult = 32, (1, 2)
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 1e-3 if holistic else 3e-3
        config.optimizer.weight_decay = 0.01
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 3000
    else:
        config.data.source, config.data.path = "tokens", f"by_tokenizer/{kind}/tokens"
        config.data.batch_size = 16
        if holistic:  # one row of tokens: to the transformer an image one cell high
            config.sequence.grid, config.data.buckets = (1, 1, _TOKENS), ((1, 8, 8 * _TOKENS),)
        t.levels = (1024,)
        config.model.num_layers = 6
        config.model.model_dim = 256
        config.model.mlp_dim = 704
        config.model.visual_vocab = 1024
        config.model.scan_layers = False
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 5e-3
        config.optimizer.ema_decay = 0.995
        config.train.num_steps = 3000
    if "smoke" in options:
        config.data.batch_size, config.train.num_steps = 2, 2
        config.train.eval_batches = config.train.num_samples = 1
        config.model.num_layers, config.model.model_dim, config.model.mlp_dim = 2, 64, 128
        if task == "tokenizer":
            t.channels, t.num_res_blocks = 32 if holistic else 8, 1
            config.data.buckets = ((5, 32, 32),)
            if holistic:
                t.clip, t.num_queries = (5, 32, 32), 8
    return config
