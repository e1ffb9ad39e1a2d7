"""The verbs of `lumos`: their flags, and the function that each calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from lumos import outputs
from lumos.errors import UserError


class Verb(NamedTuple):
    define: Callable  # its flags
    run: Callable  # (values of the flags, config overrides) -> exit code or None
    words: tuple[str, ...] = ()  # flags that may stand without their names, in this order; those without a default must
    no_overrides: str = ""  # what to say to --config.section.field=value, where the verb does not take it


def _text(name: str, default: str | None, help_text: str, *, required: bool = False) -> Callable:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(name, default, help_text, flag_values=values)
        if required:
            flags.mark_flag_as_required(name, flag_values=values)

    return define


def _number(name: str, default: int, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_integer(name, default, help_text, flag_values=values)


def _switch(name: str, default: bool, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_boolean(name, default, help_text, flag_values=values)


def _many(name: str, help_text: str) -> Callable:
    return lambda values: flags.DEFINE_multi_string(name, [], help_text, flag_values=values)


def _flags(*definitions: Callable) -> Callable:
    return lambda values: [define(values) for define in definitions]


_CONFIG = _text("config", None, "config file, path.py[:variant]", required=True)
_WORKDIR = _text("workdir", None, "training workdir", required=True)


def _demo(values, overrides):
    outputs.check_workdir(values.workdir, "--workdir")
    from lumos.demo import demo

    demo(values.workdir, values.config, values.variant)


def _data_index(values, overrides):
    from lumos import config
    from lumos.data.index import index

    c = config.load(values.config, overrides) if values.config else config.override(config.Config(), overrides)
    print(index(values.input, values.out, c.data))


def _data_shapes(values, overrides):
    from lumos import config

    c = config.load(values.config, overrides)
    if c.data.source != "moving_shapes":
        raise UserError(f"{values.config}: config.data.source is {c.data.source!r}, not 'moving_shapes'")
    outputs.check_folder(c.data.path, "--config.data.path")
    from lumos.data import moving_shapes

    moving_shapes.prepare(c.data.path, c.shapes, c.data.buckets[0], c.seed)


def _data_record(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.data.record import record

    path = record(
        values.game, values.out, values.clips, num_frames=values.frames, seed=values.seed, workers=values.workers
    )
    print(f"{path}; next: lumos data index --input={path} --out={path.with_name('manifest.jsonl')}")


def _data_vocab(values, overrides):
    outputs.check_file(values.out, "--out")
    from lumos import config
    from lumos.data.index import read_manifest
    from lumos.data.text import train_vocab

    captions = [row["caption"] for row in read_manifest(values.manifest)]
    c = config.load(values.config, overrides) if values.config else config.override(config.Config(), overrides)
    tokenizer = train_vocab(captions, values.out, c.text.vocab_size)
    print(f"{values.out}: {tokenizer.vocab_size} pieces")


def _train(values, overrides):
    from lumos.training.watchdog import Watchdog

    with Watchdog() as watchdog:  # before jax is imported and devices are looked for
        outputs.check_workdir(values.workdir, "--workdir")
        from lumos import config
        from lumos.training.loop import train

        fresh = tuple(filter(None, values.fresh.split(",")))
        run = config.load(values.config, overrides)
        options = {"init_from": values.init_from, "fresh": fresh, "profile_at": values.profile_at}
        train(run, values.workdir, watchdog=watchdog, **options)


def _replay(values, overrides):
    from lumos.training.replay import replay

    _join()
    result = replay(values.dump)
    for name, value in result["metrics"].items():
        print(f"{name:12} now {value!r:24} then {result['recorded'].get(name)!r}")
    print(f"step {result['step']} ({result['reason']}): {'bitwise equal' if result['bitwise'] else 'DIFFERENT'}")


def _join() -> None:
    """Connect to the other processes, where a launcher started several."""
    from lumos import processes

    processes.join()
    processes.census()


def _tokenize(values, overrides):
    outputs.check_folder(values.out, "--out")
    import jax

    from lumos import config
    from lumos.tokenizers import pretrained
    from lumos.tokenizers.tokenize import tokenize

    _join()
    tokenize(
        config.load(values.config, overrides),
        pretrained.load(values.workdir),
        values.out,
        splits=tuple(values.splits.split(",")),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _generate(values, overrides):
    from lumos.generation.command import generate

    if values.image and values.video:
        raise UserError("lumos generate: give --image or --video, not both")
    paths = generate(
        values.workdir,
        values.prompt,
        values.out,
        overrides,
        given=values.image or values.video,
        num_frames=values.frames,
        seed=values.seed,
        step=None if values.step < 0 else values.step,
    )
    print("\n".join(str(path) for path in paths))


def _evaluate(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.evaluation.evaluate import evaluate

    results = evaluate(values.workdir, values.out, overrides, seed=values.seed, what=values.what)
    print(results["report"])


def _convert(values, overrides):
    check = outputs.check_workdir if values["from"].value in ("lumos1", "cosmos") else outputs.check_folder
    check(values["to"].value, "--to")
    from lumos.interop.convert import Options, convert

    options = Options(**{name: values[name].value for name in ("dtype", "tokenizer", "text", "ids")})
    print(convert(values["from"].value, values["input"].value, values["to"].value, options, overrides))


def _plan(values, overrides):
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs; libtpu must not look for chips
    from lumos import config
    from lumos.planning.command import plan

    c = config.load(values.config, overrides)
    purpose, find = values["for"].value, values.search
    plan(c, values.topology, purpose, compile=values.compile, find=find, json=values.json)


def _launch(values, overrides):
    from lumos.launch import local
    from lumos.launch.command import launch
    from lumos.launch.spec import make_job

    if values.local:
        processes, devices = values.num_processes, values.devices_per_process
        return local.run(values.verb, num_processes=processes, devices_per_process=devices)
    options = {
        name: values[name].value
        for name in ("image", "per", "max_restarts", "time_limit", "setup")
        if values[name].present
    }
    job = make_job(values.name, values.topology, values.verb, **options)
    return launch(job, values.cluster, dry_run=values.dry_run)


def _info(values, overrides):
    import os

    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed; the accelerator may belong to a run
    from lumos.info.kinds import describe
    from lumos.info.render import as_json, as_text

    print((as_json if values.json else as_text)(describe(values.path)), end="")


def _config_show(values, overrides):
    from lumos.config_show import show

    print(show(values.config, overrides, as_json=values.json), end="")


def _config_diff(values, overrides):
    from lumos.config_show import diff

    print(diff(values.config, values.other, as_json=values.json), end="")


def _help(values, overrides):
    from lumos.config_help import describe

    print(describe(values.field, VERBS), end="")


_ANY_CONFIG = _text("config", None, "path.py[:variant], config.json, or a training workdir")

VERBS: dict[str, Verb] = {
    "demo": Verb(
        _flags(
            _text("workdir", "demo", "where everything is written"),
            _text("config", "configs/demo.py", "config file with the variants tokenizer and transformer"),
            _text("variant", "", "extra variant of the config file, such as smoke"),
        ),
        _demo,
        no_overrides="lumos demo takes no config overrides; copy configs/demo.py and pass it with --config",
    ),
    "data index": Verb(
        _flags(
            _text("input", None, "folder, glob, or CSV/TSV/JSONL/parquet list of clips", required=True),
            _text("out", None, "manifest to write, .jsonl", required=True),
            _text("config", None, "config file whose data section sets limits and threads"),
        ),
        _data_index,
    ),
    "data shapes": Verb(_flags(_CONFIG), _data_shapes),
    "data record": Verb(
        _flags(
            _text("game", None, "vizdoom | ale", required=True),
            _text("out", None, "folder for the clips", required=True),
            _number("clips", 1024, "clips in all; of eight, six are for training, one for validation, one for test"),
            _number("frames", 33, "frames of a clip"),
            _number("seed", 0, "random seed"),
            _number("workers", 2, "processes that play"),
        ),
        _data_record,
        no_overrides="lumos data record takes no config overrides",
    ),
    "data vocab": Verb(
        _flags(
            _text("manifest", None, "manifest whose captions to learn from", required=True),
            _text("out", None, "sentencepiece model to write", required=True),
            _text("config", None, "config file whose text section sets the vocabulary size"),
        ),
        _data_vocab,
    ),
    "train": Verb(
        _flags(
            _CONFIG,
            _WORKDIR,
            _text("init_from", "", "workdir whose weights a new run starts from"),
            _text("fresh", "", "parameters that start anew even so, such as lm_head,embed"),
            _number("profile_at", 0, "step from which three steps are profiled; 0 = only on SIGUSR1"),
        ),
        _train,
    ),
    "replay": Verb(
        _flags(_text("dump", None, "folder under <workdir>/dumps")),
        _replay,
        words=("dump",),
        no_overrides="lumos replay takes no config overrides: it runs the step as it was",
    ),
    "tokenize": Verb(
        _flags(
            _CONFIG,
            _text("workdir", None, "workdir of the trained tokenizer", required=True),
            _text("out", None, "folder for the token shards", required=True),
            _text("splits", "train,validation", "splits to encode"),
        ),
        _tokenize,
    ),
    "generate": Verb(
        _flags(
            _WORKDIR,
            _many("prompt", "a caption; repeat the flag for several clips in one batch"),
            _text("out", None, "file (.mp4, .gif, .png), or a folder for several prompts", required=True),
            _text("image", None, "first frame: image-to-video"),
            _text("video", None, "first frames: video-to-video continuation"),
            _number("step", -1, "checkpoint whose weights are used; -1 = the newest"),
            _number("frames", 0, "frames to make in all, 1 + 4k; 1 = an image; 0 = as trained"),
            _number("seed", 0, "random seed"),
        ),
        _generate,
    ),
    "convert": Verb(
        _flags(
            _text("from", None, "lumos1 | cosmos (weights), lumos (a workdir), lumos1-tokens (pickles)", required=True),
            _text("input", None, "what to convert: weights, a workdir, or tokens"),
            _text("to", None, "workdir or folder to write", required=True),
            _text("dtype", "", "float32 | bfloat16; by default lumos1 loads float32 and lumos writes what it has"),
            _text("tokenizer", "", "workdir of the converted Cosmos tokenizer: of the run, or of the tokens"),
            _text("text", "", "tokenizer.json of the text; by default the one beside the weights"),
            _text("ids", "", "JSON file with the token ids of another vocabulary (docs/released_weights.md)"),
        ),
        _convert,
        words=("input",),
    ),
    "plan": Verb(
        _flags(
            _CONFIG,
            _text("topology", None, "v5e:16x16, v5p:8x8x4, 2*v6e:16x16 (slices), h100:64", required=True),
            _text("for", "", "train | generate | tokenizer; by default what the config trains"),
            _switch("compile", True, "compile the step (TPU); false gives the estimate alone, at once"),
            _switch("search", False, "look for the best mesh, batch and remat policy first"),
            _switch("json", False, "print the result as one line of JSON at the end"),
        ),
        _plan,
    ),
    "launch": Verb(
        _flags(
            _switch("local", False, "run processes on this machine, on CPU devices"),
            _number("num_processes", 2, "with --local: processes"),
            _number("devices_per_process", 1, "with --local: CPU devices of each"),
            _text("cluster", "slurm", "slurm | gke | tpu-vm | skypilot"),
            _text("topology", "h100:8", "devices of the job: h100:64, v5p:8x8x4, 2*v5e:16x16"),
            _text("name", "lumos", "of the job"),
            _text("image", "", "container image (gke, skypilot)"),
            _text("per", "node", "node | gpu: what gets a process of its own (slurm)"),
            _text(
                "setup",
                "",
                "shell command before the verb (slurm: once, in the batch script; tpu-vm, skypilot: on every host)",
            ),
            _text("time_limit", "24:00:00", "of one SLURM allocation; the job is requeued after it"),
            _number("max_restarts", 100, "after failures and preemptions"),
            _switch("dry_run", False, "print the file instead of submitting it"),
            _many("verb", "what to run: everything behind --"),
        ),
        _launch,
        no_overrides="lumos launch: config overrides belong behind --, to the verb",
    ),
    "evaluate": Verb(
        _flags(
            _WORKDIR,
            _text("out", None, "folder of the report", required=True),
            _text("what", "all", "all | tokenizer (reconstruction alone)"),
            _number("seed", 0, "random seed"),
        ),
        _evaluate,
    ),
    "info": Verb(
        _flags(
            _text("path", None, "workdir, checkpoint, manifest, token folder, record shard, data folder, ..."),
            _switch("json", False, "print one JSON object instead"),
        ),
        _info,
        words=("path",),
        no_overrides="lumos info takes no config overrides; lumos config show does",
    ),
    "config show": Verb(
        _flags(_ANY_CONFIG, _switch("json", False, "print one JSON object instead")), _config_show, words=("config",)
    ),
    "config diff": Verb(
        _flags(
            _ANY_CONFIG,
            _text("other", None, "the other config"),
            _switch("json", False, "print one JSON object instead"),
        ),
        _config_diff,
        words=("config", "other"),
        no_overrides="lumos config diff takes no config overrides",
    ),
    "help": Verb(
        _flags(_text("field", "", "section, or section.field, of the config")),
        _help,
        words=("field",),
        no_overrides="lumos help takes the name of a field: lumos help optimizer.decay",
    ),
}
