r"""Six quantisers at equal bits (10 a cell) in one network (0.92 M), recorded gameplay at 64x64; then the adversarial stage.

Runs:      lumos data record --game=vizdoom --out=gameplay --clips=2048
           lumos data index  --input=gameplay/clips.jsonl --out=gameplay/manifest.jsonl
           for q in fsq lfq bsq vq simvq ibq; do
             lumos train    --config=configs/tokenizer_quantizers.py:$q     --workdir=quantizers/$q
             lumos train    --config=configs/tokenizer_quantizers.py:$q,gan --workdir=quantizers/$q,gan \
               --init_from=quantizers/$q --fresh=discriminator
             for run in $q $q,gan; do for split in validation test; do
               lumos evaluate --workdir=quantizers/$run --out=quantizers/$run/$split --config.evaluate.split=$split \
                 --config.evaluate.networks='("alex", "i3d")'
             done; done
           done
           for q in fsq vq; do
             lumos train --config=configs/tokenizer_quantizers.py:$q,long --workdir=quantizers/$q,long
             lumos train --config=configs/tokenizer_quantizers.py:$q,long --workdir=quantizers/$q,hour --config.train.num_steps=10000
           done
           python benchmarks/haar_baseline.py --config=configs/tokenizer_quantizers.py:vq --split=validation
Needs:     lumos-video[games,metrics]
Expected:  docs/results.md, section "Tokenizers". On held-out episodes a Haar coder of the same bits has 22.6 dB; VQ 24.5, FSQ 23.9, SimVQ 23.6,
           LFQ 23.2, BSQ 22.9, IBQ 21.1; with ",long" (5 min) VQ 25.1 and FSQ 24.7, after 50 min 26.3 and 25.8. The adversarial
           stage takes 9-15 % from rFVD and 17-31 % from LPIPS for 0.1 dB. Levels that training never shows give the same order.
"""

from lumos import config_loading

_LEVELS = {"fsq": (8, 5, 5, 5), "lfq": (2,) * 10, "bsq": (2,) * 10, "vq": (1024,), "simvq": (1024,), "ibq": (1024,)}


def get_config(variant: str = "fsq"):
    """Variants: fsq, lfq, bsq, vq, simvq, ibq; with ",gan" the adversarial stage after it, with ",long" more training;
    each also with ",smoke"."""
    quantizer, *options = variant.split(",")
    config = config_loading.default()
    known = [option for option in ("gan", "long", "smoke") if option in options]
    config.name, config.task = f"tokenizer {','.join([quantizer, *known])}", "tokenizer"
    config.tokenizer.quantizer, config.tokenizer.levels = quantizer, _LEVELS[quantizer]
    config.tokenizer.channels = 32
    config.tokenizer.channel_mult = (1, 2)
    config.tokenizer.norm = "position"
    config.tokenizer.temporal_window = 8
    config.tokenizer.l1_weight, config.tokenizer.l2_weight = 0.2, 1.0
    # Beside a pixel loss of 0.02 the published weights rule (LFQ, SimVQ), or vanish with the temperature (BSQ).
    config.tokenizer.fsq_entropy_weight, config.tokenizer.fsq_latent_weight = 0.003, 0.001
    config.tokenizer.entropy_boost_steps = 300
    if quantizer == "lfq":
        config.tokenizer.entropy_temperature, config.tokenizer.entropy_weight = 0.5, 0.008
        config.tokenizer.commitment_weight = 0.02
    if quantizer == "bsq":  # weighed by the temperature
        config.tokenizer.entropy_temperature, config.tokenizer.entropy_weight = 0.05, 0.008 / 0.05
        config.tokenizer.commitment_weight = 0.002
    if quantizer == "simvq":
        config.tokenizer.l1_weight, config.tokenizer.l2_weight = 2.0, 10.0
    config.data.source, config.data.path = "clips", "gameplay/manifest.jsonl"
    config.data.buckets = ((9, 64, 64),)
    config.data.batch_size = 4
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.final_fraction = 0.02
    config.optimizer.ema_decay = 0.995
    config.train.num_steps = 600
    config.evaluate.num_clips = 128
    if "long" in options:
        config.data.batch_size, config.train.num_steps = 8, 1000
    if "gan" in options:
        # With ten times as much beside the pixel loss, decoders please AlexNet with a grid of 4 pixels.
        config.perceptual.net, config.perceptual.weight = "alex", 0.02 * config.tokenizer.l2_weight
        config.adversarial.weight, config.adversarial.channels = 0.1, 16
        config.adversarial.learning_rate = 5e-4
        config.adversarial.start_step, config.adversarial.ramp_steps = 20, 40
        config.adversarial.lecam_weight = 0.005
        config.tokenizer.entropy_boost_steps = 0
        config.optimizer.learning_rate, config.optimizer.ema_decay = 3e-4, 0.98
        config.train.num_steps = 120
    if "smoke" in options:
        config.tokenizer.channels, config.data.batch_size, config.train.num_steps = 8, 2, 2
        config.data.buckets = ((5, 32, 32),)
        config.train.eval_batches = config.train.num_samples = 1
        config.adversarial.channels, config.perceptual.weight = 8, 0.0
    return config
