"""The verbs that generate and evaluate: their flags, and the functions that they call."""

from __future__ import annotations

import os

from lumos import outputs
from lumos.errors import UserError
from lumos.flag_definitions import Verb, decimal, group, join_processes, many, number, switch, text


def _generate(values, overrides):
    from lumos.release.hub import local
    from lumos.videos.prompts import read_prompts
    from lumos.videos.video_files import Request, generate

    values.workdir = local(values.workdir)
    if values.layout:
        _generate_benchmark(values, overrides)
        return
    if values.image and values.video:
        raise UserError("lumos generate: give --image or --video, not both")
    prompts = (*values.prompt, *(read_prompts(values.prompts) if values.prompts else ()))
    join_processes()
    request = Request(
        prompts=prompts,
        samples=max(values.samples_per_prompt, 1),
        given=values.image or values.video or "",
        num_frames=values.frames,
        actions=values.actions,
        seed=values.seed,
        step=values.step,
        weights=values.weights,
    )
    paths = generate(values.workdir, request, values.out, _with_dtype(values, overrides))
    if _is_first():
        print("\n".join(str(path) for path in paths))


def _stream(values, overrides):
    from lumos.release.hub import local
    from lumos.streaming.stream_file import Request, stream

    names = ("prompt", "seconds", "seed", "switch", "save", "resume", "profile")
    if values.image and values.video:
        raise UserError("lumos stream: give --image or --video, not both")
    request = Request(given=values.image or values.video, **{name: values[name].value for name in names})
    made = stream(local(values.workdir), request, values.out, overrides)
    rate = made["pixel_frames_per_s"]
    print(
        values.out + (f": {made['latent_frames']} latent frames, {rate:.1f} frames of pixels a second" if rate else "")
    )


def _serve(values, overrides):
    from lumos.release.hub import local
    from lumos.streaming.serve import serve

    if values.seats < 1:
        raise UserError(f"--seats={values.seats} must be at least 1")
    serve(local(values.workdir), values.host, values.port, values.seats, overrides)


def _play(values, overrides):
    from lumos.release.hub import local
    from lumos.worlds.play import play

    if values.seats < 1:
        raise UserError(f"--seats={values.seats} must be at least 1")
    if values.record:
        outputs.check_folder(values.record, "--record")
    names = ("terminal", "host", "port", "seats", "seed", "record", "speculate")
    play(local(values.workdir), overrides=overrides, **{name: values[name].value for name in names})


def _generate_benchmark(values, overrides):
    from lumos.videos import benchmarks, reconstructed_files
    from lumos.videos.video_files import Request, generate_benchmark

    if values.layout == "tokenbench":
        made = reconstructed_files.reconstruct(values.workdir, values.video or "", values.out)
        print(f"{len(made)} files; score them with: {reconstructed_files.command(values.video, values.out)}")
        return
    options = {"images": values.image or "", "samples": values.samples_per_prompt}
    files = benchmarks.plan(values.layout, values.prompts, values.out, **options)
    join_processes()
    request = Request(num_frames=values.frames, seed=values.seed, step=values.step, weights=values.weights)
    generate_benchmark(values.workdir, request, files, values.out, _with_dtype(values, overrides))
    if _is_first():
        print(f"{len(files.items)} files; score them with: {files.command}")


def _with_dtype(values, overrides):
    """Return the overrides with that of --dtype: the precision in which weights are loaded."""
    return overrides | ({"model.param_dtype": values.dtype} if values.dtype else {})


def _is_first() -> bool:
    import jax

    return jax.process_index() == 0


def _evaluate(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.evaluation.evaluate import evaluate
    from lumos.release.hub import local

    join_processes()
    options = {name: values[name].value for name in ("seed", "what", "step", "weights", "prompts")}
    samples = {"evaluate.samples_per_prompt": str(values.samples_per_prompt)} if values.samples_per_prompt else {}
    results = evaluate(local(values.workdir), values.out, _with_dtype(values, overrides) | samples, **options)
    if _is_first():
        print(results["report"])


def _sweep(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.evaluation.cells import parse_shard, split_values
    from lumos.evaluation.sweep import Sweep, Worker, dry_run
    from lumos.runtime import processes

    processes.keep_apart()

    try:
        seeds = tuple(int(seed) for seed in split_values(values.seeds))
    except ValueError:
        raise UserError(f"--seeds={values.seeds}: give numbers with commas, such as 0,1,2") from None
    sweep = Sweep(
        workdir=values.workdir,
        out=values.out,
        overrides=_with_dtype(values, overrides),
        step=values.step,
        weights=values.weights,
        settings=tuple(values["set"].value),
        zipped=values.zip,
        seeds=seeds,
        prompts=tuple(values.prompts),
        measure=tuple(split_values(values.measure)),
        shard=parse_shard(values.shard, dict(os.environ)),
        best=values.best,
        watch=values.watch,
        retry=values.retry,
    )
    worker = Worker(sweep)
    print(dry_run(worker) if values.dry_run else worker.run())


def _report(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.evaluation.report import merge

    if not values.dir:
        raise UserError("lumos report DIR...: give the folders of sweeps or evaluations")
    print(merge(values.dir, values.out, values.best))


_CHECKPOINT = (
    text(
        "step",
        "",
        "checkpoint: a number, several with commas, best (in the evaluations of training), or all; by default the newest",
    ),
    text("weights", "", "ema | raw; the EMA where there is one"),
    text("dtype", "", "precision in which weights are loaded, such as bfloat16; that of config.model.param_dtype"),
)
_BEST = text("best", "", "metric by which the best cell is chosen and compared with the run's own settings")
_WORKDIR = text("workdir", None, "training workdir", required=True)
_MODEL = text("workdir", None, "training workdir, release (lumos export), or hf://organisation/name", required=True)

VERBS: dict[str, Verb] = {
    "serve": Verb(
        group(
            _MODEL,
            text("host", "127.0.0.1", "address to listen at; beyond this machine the printed address holds a token"),
            number("port", 8080, "port to listen at"),
            number("seats", 4, "viewers at a time"),
        ),
        _serve,
    ),
    "play": Verb(
        group(
            _MODEL,
            switch("terminal", False, "play in this terminal, in half blocks, instead of on a page"),
            text("host", "127.0.0.1", "address of the page; beyond this machine the printed address holds a token"),
            number("port", 8080, "port of the page"),
            number("seats", 1, "players at a time, on the page"),
            number("seed", 0, "random seed, in the terminal; it chooses the held-out frame that the world begins with"),
            text(
                "record", "", "folder for sessions: .mp4, .npz with the actions, and clips.jsonl for lumos data index"
            ),
            switch("speculate", False, "make the next frame before it is due, as if the key stayed (terminal)"),
        ),
        _play,
    ),
    "stream": Verb(
        group(
            _MODEL,
            text("prompt", "", "a caption, or a script: 'a red car[5s] | it rains[10s#]' (# = a new scene)"),
            decimal("seconds", 0.0, "length; 0 = that of the script, and until Ctrl-C where its last part has none"),
            number("seed", 0, "random seed"),
            text("switch", "recache", "how prompts change: recache | keep | flush"),
            text("image", "", "image that the video begins with"),
            text("video", "", "video whose frames it begins with"),
            text("save", "", "folder to save into at the end, to go on from later"),
            text("resume", "", "folder that an earlier stream has saved, to go on from; --prompt holds from there on"),
            text("profile", "", "JSON file with rates, gaps between frames, and seconds by cause"),
            text("out", None, ".mp4 to write, which plays while it grows", required=True),
        ),
        _stream,
    ),
    "generate": Verb(
        group(
            _MODEL,
            many("prompt", "a caption; repeat the flag for several clips"),
            text("prompts", "", "file of prompts: .txt (one a line), .csv or .jsonl"),
            number(
                "samples_per_prompt", 0, "clips of each prompt; by default one, or with --layout the official number"
            ),
            text(
                "layout",
                "",
                "files as a benchmark reads them: vbench, vbench-i2v, vbench-long, geneval, t2i-compbench, tokenbench",
            ),
            text("out", None, "file (.mp4, .gif, .png), or a folder for several prompts", required=True),
            text("image", None, "first frame: image-to-video"),
            text("video", None, "first frames: video-to-video continuation"),
            *_CHECKPOINT,
            number("frames", 0, "frames to make in all, 1 + 4k; 1 = an image; 0 = as trained"),
            text("actions", "", "that lead to the frames of a world, one by one: 'turn left*8,move forward*4,none'"),
            number("seed", 0, "random seed"),
        ),
        _generate,
    ),
    "evaluate": Verb(
        group(
            _MODEL,
            text("out", None, "folder of the report", required=True),
            text(
                "what",
                "all",
                "all | tokenizer (reconstruction alone) | world (a model that is played) | long (videos of evaluate.long_seconds)",
            ),
            *_CHECKPOINT,
            text("prompts", "", "file of prompts: .txt (one a line), .csv or .jsonl; held-out prompts by default"),
            number("samples_per_prompt", 0, "clips of each prompt; by default config.evaluate.samples_per_prompt"),
            number("seed", 0, "random seed"),
        ),
        _evaluate,
    ),
    "sweep": Verb(
        group(
            _WORKDIR,
            text(
                "out",
                None,
                "folder of the sweep; workers that share it share the work, and one that is started again goes on",
                required=True,
            ),
            text("step", "all", "checkpoints: numbers with commas, best, latest, or all"),
            *_CHECKPOINT[1:],
            many("set", "generate.FIELD=a,b,c or evaluate.FIELD=a,b,c; repeat the flag: all combinations"),
            switch("zip", False, "take the values of all --set side by side instead"),
            text("seeds", "0", "seeds with commas"),
            many(
                "prompts",
                "file of prompts (.txt, .csv, .jsonl); repeat the flag for several sets; held-out prompts by default",
            ),
            text(
                "measure",
                "",
                "likelihood,prompts,continuation,tokens,drift,fvd,cost; by default what there are data for",
            ),
            text(
                "shard",
                "",
                "i/n: begin with the i-th of n parts; by default that of the SLURM array task or launched process",
            ),
            _BEST,
            switch("watch", False, "follow a run that is training, until its last step"),
            switch("retry", False, "try failed cells again"),
            switch("dry_run", False, "print the cells and an estimate of the time"),
        ),
        _sweep,
    ),
    "report": Verb(
        group(
            many("dir", "folder of a sweep or an evaluation; repeat the flag, or give folders without it"),
            text("out", None, "folder of the page", required=True),
            _BEST,
        ),
        _report,
        rest="dir",
        no_overrides="lumos report takes no config overrides",
    ),
}
