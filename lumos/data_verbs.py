"""The verbs of data: their flags, and the functions that they call."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from lumos import outputs
from lumos.errors import UserError
from lumos.flag_definitions import Verb, decimal, group, number, switch, text

_CONFIG = text("config", None, "config file, path.py[:variant]", required=True)


def _data_index(values, overrides):
    from lumos.data.candidates import Options
    from lumos.data.index import index

    options = Options(values.captions, tuple(filter(None, values.keep.split(","))))
    print(index(values.input, values.out, _config_or_default(values, overrides).data, options))


def _data_benchmark(values, overrides):
    outputs.check_file(values.out, "--out", (".csv",))
    from lumos.data.benchmark_lists import write_list

    counts = write_list(values.name, values.input, values.out)
    found = ", ".join(f"{count} of split {split}" for split, count in counts.items())
    print(f"{values.out}: {found}; next: lumos data index --input={values.out} --out=clips.jsonl")


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


def record(arguments: list[str]) -> Path:
    """Record clips by the flags of `lumos data record`; return the list of them. Raises UserError."""
    values = flags.FlagValues()
    VERBS["data record"].define(values)
    try:
        rest = values(["", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"config.data.record: {error}") from error
    if rest:
        raise UserError(f"config.data.record: unexpected {rest[0]!r}; flags of lumos data record are --name=value")
    return _record(values)


def _data_record(values, overrides):
    path = _record(values)
    print(f"{path}; next: lumos data index --input={path} --out={path.with_name('manifest.jsonl')}")


def _record(values) -> Path:
    outputs.check_folder(values.out, "--out")
    from lumos.data import games

    options = {name: values[name].value for name in ("seed", "workers", "level", "skip", "turn")}
    actions = tuple(filter(None, (name.strip() for name in values.actions.split(","))))
    return games.record(values.game, values.out, values.clips, num_frames=values.frames, actions=actions, **options)


def _data_vocab(values, overrides):
    outputs.check_file(values.out, "--out")
    from lumos.data.manifest import read_manifest
    from lumos.data.text import train_vocab

    captions = [row["caption"] for row in read_manifest(values.manifest)]
    tokenizer = train_vocab(captions, values.out, _config_or_default(values, overrides).text.vocab_size)
    print(f"{values.out}: {tokenizer.vocab_size} pieces")


def _data_cut(values, overrides):
    from lumos.data.cut import cut

    names = ("cuts", "threshold", "least", "most", "threads")
    print(cut(values.manifest, values.out, **{name: values[name].value for name in names}))


def _data_filter(values, overrides):
    from lumos.data.filter import filter_manifest

    names = ("where", "near_duplicates", "threads")
    print(filter_manifest(values.manifest, values.out, **{name: values[name].value for name in names}))


def _data_check(values, overrides):
    if values.sheet:
        outputs.check_file(values.sheet, "--sheet", (".png", ".jpg"))
    if bool(values.sheet) != bool(values.workdir):
        raise UserError(
            "--sheet and --workdir stand together: the tokenizer that made the tokens decodes them for the picture"
        )
    from lumos.tokenizers import pretrained
    from lumos.tokenizers.check_tokens import check

    tokenizer = pretrained.load(values.workdir) if values.workdir else None
    report = check(values.tokens, tokenizer=tokenizer, sheet=values.sheet, samples=values.samples)
    print(report)
    return 1 if report.num_problems else 0


def _data_label(values, overrides):
    outputs.check_folder(values.out, "--out")
    from lumos.latent_actions.label import label
    from lumos.latent_actions.trained import Labeller

    manifest = label(values.tokens, Labeller.load(values.workdir), values.out, keep=values.keep)
    named = manifest["latent_actions"]
    sizes = tuple((stream["codes"] + 1, stream["tokens"]) for stream in manifest["streams"])
    print(f"{values.out}: codes {named['codes']}, perplexity {named.get('perplexity', 0):.3g}; train on them with")
    print(f"  --config.data.path={values.out} --config.sequence.streams={sizes}")


VERBS: dict[str, Verb] = {
    "data index": Verb(
        group(
            text(
                "input", None, "folder, glob, tar, CSV/TSV/JSONL/parquet list of clips, or a LeRobot set", required=True
            ),
            text("out", None, "manifest to write: .jsonl (to read), or .arrow (for millions of clips)", required=True),
            text(
                "captions", "beside", "beside: the files beside the clips; folder: the name of the folder around a clip"
            ),
            text("keep", "", "more columns of a list, or fields of the .json in a tar, that go into the manifest: a,b"),
            text("config", None, "config file whose data section sets limits and threads"),
        ),
        _data_index,
    ),
    "data benchmark": Verb(
        group(
            text("name", None, "ucf101 | kinetics600 | bair", required=True),
            text("input", None, "folder of the benchmark, laid out as it is published", required=True),
            text("out", None, "list to write, .csv", required=True),
        ),
        _data_benchmark,
        no_overrides="lumos data benchmark takes no config overrides",
    ),
    "data shapes": Verb(group(_CONFIG), _data_shapes),
    "data record": Verb(
        group(
            text("game", None, "vizdoom | ale", required=True),
            text("out", None, "folder for the clips", required=True),
            number("clips", 1024, "clips in all; of eight, six are for training, one for validation, one for test"),
            number("frames", 33, "frames of a clip"),
            number("seed", 0, "random seed"),
            text(
                "level", "", "level of VizDoom (defend_the_center) or game of ALE (pong) of all clips; by default many"
            ),
            text(
                "actions",
                "",
                "of the level, with commas, numbered in this order: none,turn left,turn right; by default all",
            ),
            number("skip", 4, "tics of the game between two frames"),
            decimal(
                "turn", 0.0, "degrees that VizDoom turns from frame to frame; by default as it does, slowly at first"
            ),
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
    "data cut": Verb(
        group(
            text("manifest", None, "manifest of long files", required=True),
            text("out", None, "manifest of their clips to write", required=True),
            text(
                "cuts", "", "list with path (or id), start, end of known clips; by default scenedetect looks for cuts"
            ),
            decimal("threshold", 27.0, "mean difference of two frames (0 to 255) that is a cut"),
            decimal("least", 1.0, "seconds of the shortest clip"),
            decimal("most", 0.0, "seconds of the longest clip, which longer ones are divided into; 0 = any"),
            number("threads", 2, "files that are looked at at a time"),
        ),
        _data_cut,
        no_overrides="lumos data cut takes no config overrides",
    ),
    "data filter": Verb(
        group(
            text("manifest", None, "manifest to read", required=True),
            text("out", None, "manifest of what is kept to write", required=True),
            text("where", "", "condition on its columns: width >= 256 and 2 < duration < 20 and words > 3"),
            number(
                "near_duplicates",
                -1,
                "bits (of 64) by which hashes of frames may differ, on the average, of clips that look alike; -1 = off",
            ),
            number("threads", 2, "clips that are looked at at a time"),
        ),
        _data_filter,
        no_overrides="lumos data filter takes no config overrides",
    ),
    "data label": Verb(
        group(
            text("tokens", None, "token folder to label", required=True),
            text(
                "workdir",
                None,
                "workdir of the latent actions: task 'actions', or config.actions.weight",
                required=True,
            ),
            text("out", None, "folder for the labelled tokens", required=True),
            switch("keep", False, "keep the streams that the tokens have; the latent actions come last then"),
        ),
        _data_label,
        no_overrides="lumos data label takes no config overrides",
    ),
    "data check": Verb(
        group(
            text("tokens", None, "token folder whose records are read, all of them"),
            text("workdir", "", "workdir of the tokenizer that made them, for --sheet"),
            text("sheet", "", "picture (.png) with some clips decoded"),
            number("samples", 8, "clips in the picture"),
        ),
        _data_check,
        words=("tokens",),
        no_overrides="lumos data check takes no config overrides",
    ),
}
