"""The typed configuration schema (config_loading.py reads configs, config_rules.py says what makes sense together)."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

from lumos import config_rules, files
from lumos.generation.compress import Compress  # noqa: F401  (a member of CachePolicy)
from lumos.generation.guidance import Guidance, TextGuidance
from lumos.generation.jacobi import Jacobi  # noqa: F401  (a member of Sampler)
from lumos.generation.jumps import Jumps  # noqa: F401  (a member of Sampler)
from lumos.generation.ladder import LadderCache  # noqa: F401  (a member of CachePolicy)
from lumos.generation.next_scale import NextScale  # noqa: F401  (a member of Sampler)
from lumos.generation.noise import NoiseRule, Own
from lumos.generation.orders import Halton  # noqa: F401  (Halton and Entropy, members of Sampler)
from lumos.generation.plan import OneByOne, Plan
from lumos.generation.policy import CachePolicy, FullCache
from lumos.generation.positions import Absolute, PositionRule
from lumos.generation.released import Released  # noqa: F401  (a member of Sampler)
from lumos.generation.retrieve import Retrieve  # noqa: F401  (a member of CachePolicy)
from lumos.generation.rollouts import NoRollout, Rollout
from lumos.generation.sampler import Confidence, Sampler
from lumos.generation.search import NoSearch, Search
from lumos.generation.shots import Shots  # noqa: F401  (a member of CachePolicy)
from lumos.generation.stitched import Stitched  # noqa: F401  (a member of Plan)
from lumos.generation.storage import AsComputed, CacheStorage
from lumos.generation.time_travel import TimeTravel  # noqa: F401  (a member of Sampler)
from lumos.model.axis_heads import Axes  # noqa: F401  (a member of Head)
from lumos.model.continuous_heads import Flow, Mixture  # noqa: F401  (members of Head)
from lumos.model.copy_head import Copy  # noqa: F401  (a member of Head)
from lumos.model.heads import Categorical, Head
from lumos.model.injection import Injection, Token
from lumos.model.mixer import Mixer, Softmax
from lumos.sequence.arrangement import Arrangement, Compact
from lumos.sequence.codebooks import Layers, Parts  # noqa: F401  (members of Arrangement)
from lumos.sequence.corruption import CorruptionConfig
from lumos.sequence.frame_order import FrameOrder, InTime
from lumos.sequence.gated import GatedWindow  # noqa: F401  (a member of Rule)
from lumos.sequence.ladder import Ladder  # noqa: F401  (a member of Rule)
from lumos.sequence.lumos1 import Lumos1  # noqa: F401  (a member of Arrangement)
from lumos.sequence.metric import Metric  # noqa: F401  (a member of Kernel)
from lumos.sequence.rule import Rule, StageCausal
from lumos.sequence.streams import ActionsConfig, StreamConfig
from lumos.sequence.targets import InPlace, LossWeights, Masked, TargetRule
from lumos.sequence.upsampled import Upsampled  # noqa: F401  (a member of Kernel)
from lumos.sharding import MeshConfig
from lumos.typed_values import to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run is trained on, and how it is read."""

    # What a training example is: "moving_shapes" (a prepared TFDS folder), "clips" (a manifest written by
    # `lumos data index`) or "tokens" (shards written by `lumos tokenize`).
    source: str = "moving_shapes"
    # Folder (moving_shapes, tokens) or manifest file (clips, or beside tokens); several with weights: a.jsonl=3,b.jsonl. What exists as
    # written is one path, the longest first; any other name with a comma or =number stands in double quotes: "a,b"=3,c.
    path: str = ""
    split: str = "train"  # split to train on
    eval_split: str = "validation"  # split of evaluations during training
    batch_size: int = 8  # clips per step over all processes, in the first bucket
    # Static shapes of one clip, (frames, height, width) in pixels; of tokens their grids (latent frames, rows, columns),
    # and () = those that lie in `path`, or `sequence.grid` where that is given. With several buckets each clip goes to the
    # one nearest in aspect ratio and length, and batch sizes shrink so that tokens per step stay equal.
    buckets: tuple[tuple[int, int, int], ...] = ()
    fps: float = 0.0  # target frame rate of decoded clips; 0 keeps the rate of the file
    # Flags of `lumos data record`, by which `lumos demo` makes the clips: --game=vizdoom --level=my_way_home
    record: str = ""
    # Of several captions an example draws one with weights (its words)**power: 0 = alike, 1 = long ones, -1 = short ones more
    caption_length_power: float = 0.0
    image_fraction: float = 0.0  # share of steps whose batch is single frames (joint image/video training)
    # Share of token clips that begin at any latent frame, where they are longer than their bucket; others begin at their first
    windows: float = 0.0
    # "clips": what comes with the frames into the tokens, one entry for each stream: (dict(name="action", codes=4),)
    streams: tuple[StreamConfig, ...] = ()
    # "clips": the first of the manifest that fit are decoded once and kept; what lies in a bucket: bytes on the local disk, of a process
    cache_gb: float = 2.0
    num_threads: int = 2  # grain read threads
    prefetch: int = 4  # batches prepared ahead
    # What a file may have at most, pixels of a frame, seconds, gigabytes: `lumos data index` refuses what is larger.
    limits: tuple[int, float, float] = (4096 * 2304, 3600.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """The moving_shapes generator (lumos/data/moving_shapes.py)."""

    level: str = "easy"  # easy | endless | medium | hard
    num_train: int = 4096  # clips of each split
    num_validation: int = 128  # clips of the validation split
    num_test: int = 128  # clips of the test split


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions and prompts become token ids."""

    # sentencepiece model or Hugging Face tokenizer.json (needs lumos-video[lumos1]); "" = the small one that ships
    model: str = ""
    # What surrounds a caption: text with {caption} and optionally {width} {height} {frames} {fps}; "" = nothing
    template: str = ""
    vocab_size: int = 512  # used by `lumos data vocab`


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The causal 3D VAE (tokenizers/causal_vae.py). Defaults are the XS net of small runs."""

    body: str = "causal"  # causal | holistic: LARP, width `channels`, `num_res_blocks` transformer layers on each side
    num_queries: int = 0  # tokens of a clip (holistic)
    clip: tuple[int, ...] = ()  # the one (frames, height, width) that can be coded (holistic)
    prior_weight: float = 0.0  # of the autoregressive prior's loss (holistic)
    prior_start: int = 0  # step from which it counts; before it the prior neither learns nor orders the tokens
    channels: int = 16  # width of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2)  # width of each level, as a multiple of channels
    num_res_blocks: int = 1  # residual blocks per level (the decoder has one more)
    patch_size: int = 4  # Haar patcher, in time and space; in time at most temporal_compression
    spatial_compression: int = 8  # pixels per latent cell, along rows and columns
    temporal_compression: int = 4  # frames per latent frame (the first frame has its own)
    z_channels: int = 16  # width before and after the quantiser's projection
    # Sizes of the factors of a code; their product is the codebook size. FSQ: levels of each channel; LFQ and BSQ: a 2
    # for each bit; VQ, SimVQ, IBQ and SVQ: only the product counts.
    levels: tuple[int, ...] = (8, 5, 5, 5)
    quantizer: str = "fsq"  # fsq | lfq | bsq | vq (with EMA) | simvq | ibq | svq (stochastic, LARP)
    # Several codes for each latent cell (parts): of slices of the channels (grouped), of what the codes before left over
    # (residual), or of ever finer grids, each half as coarse as the one before (layers).
    composition: str = "single"  # single | grouped | residual | layers
    parts: int = 1  # codes per cell, or layers
    part_drop: float = 0.0  # share of training clips that keep only a random number of the first parts
    code_dim: int = 8  # channels of a code of VQ, SimVQ, IBQ and SVQ
    commitment_weight: float = 0.25  # pulls latents to their codes (all but FSQ)
    entropy_weight: float = 0.1  # confident positions, evenly used codes (LFQ, BSQ, IBQ, SVQ)
    fsq_entropy_weight: float = 0.0  # the same for FSQ, whose codes long training spreads by itself
    fsq_latent_weight: float = 0.0  # squares of FSQ latents: keeps them where tanh has a gradient
    entropy_temperature: float = 0.01  # of the code probabilities in the entropies (LFQ, BSQ, IBQ)
    # The entropy weight starts three times as large and falls to itself over these steps.
    entropy_boost_steps: int = 2000
    codebook_decay: float = 0.99  # of the running counts and sums (VQ)
    codebook_reset: float = 0.1  # codes used less than this share of the mean move to a random latent (VQ); 0 = never
    outer_norm: bool = False  # norms before the bottleneck and the output (the Cosmos shape has them)
    # What a norm averages over: frame (rows, columns and channels, as Cosmos) or position (channels: cells stay independent)
    norm: str = "frame"
    mid_attention: bool = True  # spatial and causal temporal attention at the latent resolution
    temporal_window: int = 0  # latent frames that temporal attention sees, itself included; 0 = all before
    dtype: str = "float32"
    remat: bool = False  # compute each level again in the backward pass instead of keeping its activations
    l1_weight: float = 1.0  # absolute error, pixels in [-1, 1]
    l2_weight: float = 0.5  # squared error; more of it raises PSNR
    # More of both on pixels that move, for what is small: 1 = as much again as all pixels have together
    motion_weight: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Distances between features of frames (tokenizers/perceptual.py); needs lumos-video[metrics]."""

    net: str = "vgg"  # vgg | alex
    weight: float = 0.0  # of LPIPS
    start_step: int = 0  # first step with LPIPS in the loss
    gram_weight: float = 0.0  # of the Gram matrices of the same features
    gram_start_step: int = 0  # first step with Gram matrices in the loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator of tokenizer training (tokenizers/adversarial.py)."""

    weight: float = 0.0  # of the decoder's adversarial loss; 0 = no discriminator
    adaptive: bool = True  # scale it to the gradient of the reconstruction loss at the decoder's last layer
    loss: str = "hinge"  # hinge | nonsaturating
    start_step: int = 0  # first step at which the discriminator learns and is heeded
    ramp_steps: int = 0  # the weights of what the decoder takes from it rise to their values over these steps
    discriminator: str = "video"  # video (patches in time and space) | frame (patches of single frames) | both
    channels: int = 32  # width of the discriminator's first layer
    num_layers: int = 3  # strided layers, each twice as wide as the one before (at most 8 times the first)
    # Feature matching: distance between the discriminator's features of video and reconstruction.
    feature_weight: float = 0.0
    lecam_weight: float = 0.0  # LeCAM regularisation
    r1_weight: float = 0.0  # gradient penalty on real clips
    learning_rate: float = 1e-4  # of the discriminator, with the schedule of config.optimizer
    beta1: float = 0.5  # of the discriminator's AdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """What the transformer sees, who sees whom, and what predicts what (lumos/sequence)."""

    layout: Arrangement = Compact()  # in which order, and in which groups, the cells of a video are generated
    attention: Rule = StageCausal()  # who sees whom
    order: FrameOrder = InTime()  # which frames have which ranks of the layout, in training
    targets: TargetRule = InPlace()  # which position predicts which token
    # 2 = a clean copy of the video, and a noisy one that is predicted and sees clean earlier groups (ACDiT)
    copies: int = 1
    text_length: int = 24  # text slots, right-aligned against the video
    grid: tuple[int, int, int] = (0, 0, 0)  # latent frames, rows, columns; zeros = the first of data.buckets
    # Streams beside the video, (codebook size, tokens in each latent frame) of each; they stand before their frame
    streams: tuple[tuple[int, int], ...] = ()
    fps: int = 12  # frames per second written into the sequence (layout lumos1, text.template)
    # Seconds written for clips of `grid`; other lengths follow from their frames, as do all with 0
    duration: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer."""

    num_layers: int = 6  # transformer blocks
    model_dim: int = 256  # width of the residual stream
    mlp_dim: int = 704  # hidden width of the SwiGLU
    num_heads: int = 4  # query heads
    num_kv_heads: int = 2  # key/value heads; fewer than num_heads is grouped-query attention
    head_dim: int = 64  # multiple of 32; at least 64 keeps low frequencies for time in MM-RoPE
    text_vocab: int = 0  # 0 = size of the sentencepiece model
    visual_vocab: int = 0  # 0 = codebook of the tokenizer
    mixer: Mixer = Softmax()  # how layers gather from what their tokens see
    head: Head = Categorical()  # how codes are predicted
    streams: Injection = Token()  # how layers learn of the streams beside the video, such as actions
    # Memory tokens: one for every k x k cells of a frame, for each k; the attention "ladder" sees old frames through them
    memory: tuple[int, ...] = ()
    # Tells codes of the first latent frame of a video, which stands for one frame of pixels, from all others (`data.windows`)
    first_frame: bool = False
    level_embedding: bool = False  # adds the share of a token's frame that is hidden to its input
    # FSQ levels of the codebook: codes that share a digit then share part of their embedding and head; () = off
    code_levels: tuple[int, ...] = ()
    qk_norm: str = "layer"  # none | rms | layer (Lumos-1: LayerNorm with weight and bias per head)
    qk_norm_groups: int = 1  # qk_norm "layer": sets of weight and bias, each for an equal run of heads
    post_norm: bool = False  # norm on the branch output (Chameleon "swin_norm") instead of its input
    attention_bias: bool = False  # biases of the attention projections
    mlp_bias: bool = False  # biases of the MLP projections
    rope: str = "mm"  # mm (Lumos-1) | 3d (contiguous channels) | 1d
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5  # of the RMSNorms
    dtype: str = "float32"  # compute
    param_dtype: str = "float32"  # bfloat16 rounds updates stochastically; moments and EMA stay float32
    matmul_dtype: str = "same"  # of the linear layers' matmuls: same (as dtype) | int8 | float8 (lumos-video[qwix])
    attention: str = "auto"  # auto (splash on TPU, cuDNN on GPU where it can, else tiles or flash) | flash | splash | dense (the test oracle)
    remat: str = "minimal"  # none | minimal | dots | full | save:<names> | offload:<names> (lumos/model/remat.py)
    scan_layers: bool = True  # False compiles every layer on its own: slower to compile; on a CPU generation is faster, training not always
    init_std: float = 0.02  # standard deviation of initial weights; branch outputs start smaller by sqrt(2 layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of the transformer."""

    weights: LossWeights = Masked()  # what each prediction weighs
    frame_weights: tuple[float, ...] = ()  # of the losses of each latent frame (Loong); () = equal
    chunk: int = 1024  # positions per chunk of the linear cross-entropy
    z_loss: float = 0.0  # weight of log(Z)^2
    label_smoothing: float = 0.0  # share of the target spread over all codes
    text_weight: float = 0.0  # weight of next-token loss on the text
    teacher: str = ""  # workdir of a trained transformer run to distil from; "" = none
    teacher_weight: float = 1.0  # weight of KL(teacher || student) at the masked codes
    teacher_temperature: float = 1.0  # of both distributions in the KL


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its learning rate schedule, and the EMA of the parameters."""

    name: str = "adamw"  # any optimizer of optax or optax.contrib
    learning_rate: float = 1e-3  # peak
    # Factors of it for parts of the model, by the path of their parameters: (("vae/prior", 50.0),); the longest path counts.
    rates: tuple[tuple[str, float], ...] = ()
    schedule: str = "cosine"  # cosine | wsd | constant
    warmup_steps: int = 100  # linear
    decay_fraction: float = 0.2  # share of the run that decays (wsd)
    final_fraction: float = 0.1  # last learning rate as a share of the peak
    beta1: float = 0.9  # first moment decay
    beta2: float = 0.95  # second moment decay
    weight_decay: float = 0.1  # decoupled; every optimizer has it
    decay: str = "matrices"  # what it acts on: matrices (neither norms nor biases) | all
    clip_norm: float = 1.0  # global gradient norm; 0 = off
    ema_decay: float = 0.999  # 0 = no EMA
    offload: bool = False  # the optimizer's state waits in the memory of the host


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long a run is, and what it does on its way."""

    num_steps: int = 1000  # updates in all
    rollout: Rollout = NoRollout()  # videos that the model makes itself, to learn from (transformer)
    accumulation: int = 1  # microbatches per step; equal to one large batch (exceptions: docs/method.md)
    log_every: int = 20  # steps between lines of metrics
    eval_every: int = 500  # steps between evaluations
    eval_batches: int = 4  # batches per evaluation
    sample_every: int = 0  # 0 = only at the end of training
    num_samples: int = 4  # 0 = never
    sample_prompts: str = ""  # file of prompts to sample (.txt, .csv, .jsonl); "" = captions of the evaluation split
    trackers: tuple[str, ...] = ("tensorboard",)  # any of tensorboard, wandb, mlflow, trackio
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # newest checkpoints to keep; the last good one is kept beside them
    keep_every: int = 0  # checkpoints at multiples of so many steps are kept for ever; 0 = none
    on_bad_steps: str = "stop"  # stop | rewind, when steps in a row are not finite or spike (runtime/health.py)
    # Seconds that start, restore, compile, step, save, evaluate may take; then the watchdog ends the process. 0 = no limit
    deadlines: tuple[float, ...] = (1800.0, 1800.0, 1800.0, 900.0, 1800.0, 1800.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How videos are sampled (lumos/generation)."""

    plan: Plan = OneByOne()  # which groups are worked on together, and when each begins
    steps: int = 16  # passes over each group of hidden tokens
    sampler: Sampler = Confidence()  # which drawn codes are kept after each pass
    noise: NoiseRule = Own()  # which groups draw with the same random numbers
    guidance: Guidance = TextGuidance()  # branches whose logits are combined
    top_k: int = 0  # codes that may be drawn; 0 = all
    top_p: float = 1.0  # share of the probability that may be drawn; 1 = all
    history_ratio: float = 0.7  # share of a finished group that is masked again before it enters the cache
    cache: CachePolicy = FullCache()  # which finished frames are kept
    storage: CacheStorage = AsComputed()  # in which form their keys and values are kept
    positions: PositionRule = Absolute()  # where kept frames stand
    search: Search = NoSearch()  # candidates that are generated together, of which the best one stays
    fps: float = 0.0  # of given and written videos; 0 = that of the data, which a transformer run saves in its config

    NUMBERS: ClassVar[dict[str, float]] = {"top_p": 1.0}  # see `lumos.generation.numbers`


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `lumos evaluate` measures, and on how much."""

    split: str = "test"  # held-out split
    num_prompts: int = 64  # prompts to generate and check
    num_clips: int = 64  # clips for reconstruction and cross-entropy
    batch_size: int = 16  # clips per batch
    samples_per_prompt: int = 1  # clips of each prompt, and continuations of each given clip
    num_given: int = 0  # latent frames given when clips are continued; 0 = that is not evaluated
    # First pixel frames of a clip that count in distances between sets of clips and to the truth; 0 = all
    num_frames: int = 0
    # Side of the square to which clips are cut and shrunk before these distances; 0 = as generated
    frame_size: int = 0
    # Length of the videos of the measure "long", taken if it is above 0, and of the sessions of "world"
    long_seconds: float = 0.0
    mask_ratio: float = 0.7  # of the fixed evaluation mask
    # Metric networks for reconstructions, from lumos-video[metrics]: any of "alex", "vgg" (LPIPS), "i3d" (rFVD).
    networks: tuple[str, ...] = ()
    # Functions that score generated clips, each "module:function" (docs/howto.md)
    metrics: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "unnamed"  # of the run, in logs and reports
    task: str = "transformer"  # what `lumos train` trains: transformer | tokenizer | actions (latent ones)
    seed: int = 0  # of initialisation, data order and masks
    tokenizer_workdir: str = ""  # transformer runs: where the tokenizer was trained
    freeze_encoder: bool = False  # tokenizer runs: train the decoder alone; tokens stay as they are
    starts_from: str = ""  # variant of the config file that lumos demo trains first, and starts this run from
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    shapes: ShapesConfig = dataclasses.field(default_factory=ShapesConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    perceptual: PerceptualConfig = dataclasses.field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = dataclasses.field(default_factory=AdversarialConfig)
    sequence: SequenceConfig = dataclasses.field(default_factory=SequenceConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    corruption: CorruptionConfig = dataclasses.field(default_factory=CorruptionConfig)
    actions: ActionsConfig = dataclasses.field(default_factory=ActionsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

    def __post_init__(self):
        config_rules.check(self)

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    def save(self, path: str | Path) -> None:
        """Write the resolved config as JSON (stored beside every checkpoint), atomically."""
        files.write_text(files.path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @property
    def codebook_size(self) -> int:
        return math.prod(self.tokenizer.levels)
