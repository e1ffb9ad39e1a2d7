"""The verbs of `lumos`: their flags, and the function that each calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lumos import outputs
from lumos.errors import UserError
from lumos.flag_definitions import group, many, number, switch, text


class Verb(NamedTuple):
    define: Callable  # its flags
    run: Callable  # (values of the flags, config overrides) -> exit code or None
    words: tuple[str, ...] = ()  # flags that may stand without their names, in this order; those without a default must
    no_overrides: str = ""  # what to say to --config.section.field=value, where the verb does not take it


_CONFIG = text("config", None, "config file, path.py[:variant]", required=True)
_WORKDIR = text("workdir", None, "training workdir", required=True)


def _demo(values, overrides):
    outputs.check_workdir(values.workdir, "--workdir")
    from lumos.demo import demo

    demo(values.workdir, values.config, values.variant)


def _data_index(values, overrides):
    from lumos.data.index import index

    print(index(values.input, values.out, _config_or_default(values, overrides).data))


def _config_or_default(values, overrides):
    from lumos import config_loading
    from lumos.config import Config

    if values.config:
        return config_loading.load(values.config, overrides)
    return config_loading.override(Config(), overrides)


def _data_shapes(values, overrides):
    from lumos import config_loading

    c = config_loading.load(values.config, overrides)
    if c.data.source != "moving_shapes":
        raise UserError(f"{values.config}: config.data.source is {c.data.source!r}, not 'moving_shapes'")
    outputs.check_folder(c.data.path, "--config.data.path")
    from lumos.data import moving_shapes
    from lumos.data.buckets import check_given

    check_given(c.data)
    moving_shapes.prepare(c.data.path, c.shapes, c.data.buckets[0], c.seed)


def _data_record(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.data.games import record

    path = record(
        values.game, values.out, values.clips, num_frames=values.frames, seed=values.seed, workers=values.workers
    )
    print(f"{path}; next: lumos data index --input={path} --out={path.with_name('manifest.jsonl')}")


def _data_vocab(values, overrides):
    outputs.check_file(values.out, "--out")
    from lumos.data.index import read_manifest
    from lumos.data.text import train_vocab

    captions = [row["caption"] for row in read_manifest(values.manifest)]
    tokenizer = train_vocab(captions, values.out, _config_or_default(values, overrides).text.vocab_size)
    print(f"{values.out}: {tokenizer.vocab_size} pieces")


def _train(values, overrides):
    from lumos.runtime.watchdog import Watchdog

    with Watchdog() as watchdog:  # before jax is imported and devices are looked for
        outputs.check_workdir(values.workdir, "--workdir")
        from lumos import config_loading
        from lumos.training.loop import train

        fresh = tuple(filter(None, values.fresh.split(",")))
        run = config_loading.load(values.config, overrides)
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
    from lumos.runtime import processes

    processes.join()
    processes.census()


def _tokenize(values, overrides):
    outputs.check_folder(values.out, "--out")
    import jax

    from lumos import config_loading
    from lumos.tokenizers import pretrained
    from lumos.tokenizers.tokenize import tokenize

    _join()
    tokenize(
        config_loading.load(values.config, overrides),
        pretrained.load(values.workdir),
        values.out,
        splits=tuple(values.splits.split(",")),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _generate(values, overrides):
    from lumos.videos.video_files import generate

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
    from lumos import config_loading
    from lumos.planning.plan import plan

    c = config_loading.load(values.config, overrides)
    purpose, find = values["for"].value, values.search
    plan(c, values.topology, purpose, compile=values.compile, find=find, json=values.json)


def _launch(values, overrides):
    from lumos.launch import local
    from lumos.launch.spec import make_job
    from lumos.launch.submit import submit_job

    if values.local:
        processes, devices = values.num_processes, values.devices_per_process
        return local.run(values.verb, num_processes=processes, devices_per_process=devices)
    options = {
        name: values[name].value
        for name in ("image", "per", "max_restarts", "time_limit", "setup")
        if values[name].present
    }
    job = make_job(values.name, values.topology, values.verb, **options)
    return submit_job(job, values.cluster, dry_run=values.dry_run)


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


_ANY_CONFIG = text("config", None, "path.py[:variant], config.json, or a training workdir")

VERBS: dict[str, Verb] = {
    "demo": Verb(
        group(
            text("workdir", "demo", "where everything is written"),
            text("config", "configs/demo.py", "config file with the variants tokenizer and transformer"),
            text("variant", "", "extra variant of the config file, such as smoke"),
        ),
        _demo,
        no_overrides="lumos demo takes no config overrides; copy configs/demo.py and pass it with --config",
    ),
    "data index": Verb(
        group(
            text("input", None, "folder, glob, or CSV/TSV/JSONL/parquet list of clips", required=True),
            text("out", None, "manifest to write, .jsonl", required=True),
            text("config", None, "config file whose data section sets limits and threads"),
        ),
        _data_index,
    ),
    "data shapes": Verb(group(_CONFIG), _data_shapes),
    "data record": Verb(
        group(
            text("game", None, "vizdoom | ale", required=True),
            text("out", None, "folder for the clips", required=True),
            number("clips", 1024, "clips in all; of eight, six are for training, one for validation, one for test"),
            number("frames", 33, "frames of a clip"),
            number("seed", 0, "random seed"),
            number("workers", 2, "processes that play"),
        ),
        _data_record,
        no_overrides="lumos data record takes no config overrides",
    ),
    "data vocab": Verb(
        group(
            text("manifest", None, "manifest whose captions to learn from", required=True),
            text("out", None, "sentencepiece model to write", required=True),
            text("config", None, "config file whose text section sets the vocabulary size"),
        ),
        _data_vocab,
    ),
    "train": Verb(
        group(
            _CONFIG,
            _WORKDIR,
            text("init_from", "", "workdir whose weights a new run starts from"),
            text("fresh", "", "parameters that start anew even so, such as lm_head,embed"),
            number("profile_at", 0, "step from which three steps are profiled; 0 = only on SIGUSR1"),
        ),
        _train,
    ),
    "replay": Verb(
        group(text("dump", None, "folder under <workdir>/dumps")),
        _replay,
        words=("dump",),
        no_overrides="lumos replay takes no config overrides: it runs the step as it was",
    ),
    "tokenize": Verb(
        group(
            _CONFIG,
            text("workdir", None, "workdir of the trained tokenizer", required=True),
            text("out", None, "folder for the token shards", required=True),
            text("splits", "train,validation", "splits to encode"),
        ),
        _tokenize,
    ),
    "generate": Verb(
        group(
            _WORKDIR,
            many("prompt", "a caption; repeat the flag for several clips in one batch"),
            text("out", None, "file (.mp4, .gif, .png), or a folder for several prompts", required=True),
            text("image", None, "first frame: image-to-video"),
            text("video", None, "first frames: video-to-video continuation"),
            number("step", -1, "checkpoint whose weights are used; -1 = the newest"),
            number("frames", 0, "frames to make in all, 1 + 4k; 1 = an image; 0 = as trained"),
            number("seed", 0, "random seed"),
        ),
        _generate,
    ),
    "convert": Verb(
        group(
            text("from", None, "lumos1 | cosmos (weights), lumos (a workdir), lumos1-tokens (pickles)", required=True),
            text("input", None, "what to convert: weights, a workdir, or tokens"),
            text("to", None, "workdir or folder to write", required=True),
            text("dtype", "", "float32 | bfloat16; by default lumos1 loads float32 and lumos writes what it has"),
            text("tokenizer", "", "workdir of the converted Cosmos tokenizer: of the run, or of the tokens"),
            text("text", "", "tokenizer.json of the text; by default the one beside the weights"),
            text("ids", "", "JSON file with the token ids of another vocabulary (docs/released_weights.md)"),
        ),
        _convert,
        words=("input",),
    ),
    "plan": Verb(
        group(
            _CONFIG,
            text("topology", None, "v5e:16x16, v5p:8x8x4, 2*v6e:16x16 (slices), h100:64", required=True),
            text("for", "", "train | generate | tokenizer; by default what the config trains"),
            switch("compile", True, "compile the step (TPU); false gives the estimate alone, at once"),
            switch("search", False, "look for the best mesh, batch and remat policy first"),
            switch("json", False, "print the result as one line of JSON at the end"),
        ),
        _plan,
    ),
    "launch": Verb(
        group(
            switch("local", False, "run processes on this machine, on CPU devices"),
            number("num_processes", 2, "with --local: processes"),
            number("devices_per_process", 1, "with --local: CPU devices of each"),
            text("cluster", "slurm", "slurm | gke | tpu-vm | skypilot"),
            text("topology", "h100:8", "devices of the job: h100:64, v5p:8x8x4, 2*v5e:16x16"),
            text("name", "lumos", "of the job"),
            text("image", "", "container image (gke, skypilot)"),
            text("per", "node", "node | gpu: what gets a process of its own (slurm)"),
            text(
                "setup",
                "",
                "shell command before the verb (slurm: once, in the batch script; tpu-vm, skypilot: on every host)",
            ),
            text("time_limit", "24:00:00", "of one SLURM allocation; the job is requeued after it"),
            number("max_restarts", 100, "after failures and preemptions"),
            switch("dry_run", False, "print the file instead of submitting it"),
            many("verb", "what to run: everything behind --"),
        ),
        _launch,
        no_overrides="lumos launch: config overrides belong behind --, to the verb",
    ),
    "evaluate": Verb(
        group(
            _WORKDIR,
            text("out", None, "folder of the report", required=True),
            text("what", "all", "all | tokenizer (reconstruction alone)"),
            number("seed", 0, "random seed"),
        ),
        _evaluate,
    ),
    "info": Verb(
        group(
            text("path", None, "workdir, checkpoint, manifest, token folder, record shard, data folder, ..."),
            switch("json", False, "print one JSON object instead"),
        ),
        _info,
        words=("path",),
        no_overrides="lumos info takes no config overrides; lumos config show does",
    ),
    "config show": Verb(
        group(_ANY_CONFIG, switch("json", False, "print one JSON object instead")), _config_show, words=("config",)
    ),
    "config diff": Verb(
        group(
            _ANY_CONFIG,
            text("other", None, "the other config"),
            switch("json", False, "print one JSON object instead"),
        ),
        _config_diff,
        words=("config", "other"),
        no_overrides="lumos config diff takes no config overrides",
    ),
    "help": Verb(
        group(text("field", "", "section, or section.field, of the config")),
        _help,
        words=("field",),
        no_overrides="lumos help takes the name of a field: lumos help optimizer.decay",
    ),
}
