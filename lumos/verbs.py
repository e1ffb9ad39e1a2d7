"""The verbs of `lumos`: their flags, and the function that each calls. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from lumos import data_verbs, evaluation_verbs, findings_verbs, launch_verbs, outputs, release_verbs
from lumos.flag_definitions import Verb, group, join_processes, many, number, switch, text

_CONFIG = text("config", None, "config file, path.py[:variant]", required=True)
_WORKDIR = text("workdir", None, "training workdir", required=True)


def _demo(values, overrides):
    outputs.check_workdir(values.workdir, "--workdir")
    from lumos.demo import demo

    demo(values.workdir, values.config, values.variant)


def _train(values, overrides):
    from lumos import api

    if values.dry_run:
        outputs.check_workdir(values.workdir, "--workdir")
        from lumos.info.render import as_text
        from lumos.training.dry_run import dry_run

        print(as_text(dry_run(api.load_config(values.config, overrides), values.workdir)), end="")
        return
    options = {"init_from": values.init_from, "profile_at": values.profile_at}
    fresh = tuple(filter(None, values.fresh.split(",")))
    api.train(values.config, values.workdir, overrides=overrides, fresh=fresh, **options)


def _replay(values, overrides):
    from lumos.training.replay import replay

    join_processes()
    result = replay(values.dump)
    for name, value in result["metrics"].items():
        print(f"{name:12} now {value!r:24} then {result['recorded'].get(name)!r}")
    print(f"step {result['step']} ({result['reason']}): {'bitwise equal' if result['bitwise'] else 'DIFFERENT'}")


def _tokenize(values, overrides):
    outputs.check_folder(values.out, "--out")
    import jax

    from lumos import config_loading
    from lumos.tokenizers import pretrained
    from lumos.tokenizers.tokenize import tokenize

    join_processes()
    tokenize(
        config_loading.load(values.config, overrides),
        pretrained.load(values.workdir),
        values.out,
        splits=tuple(filter(None, values.splits.split(","))),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _convert(values, overrides):
    check = outputs.check_workdir if values["from"].value in ("lumos1", "cosmos", "release") else outputs.check_folder
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


def _info(values, overrides):
    import os

    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed; the accelerator may belong to a run
    from lumos.info.kinds import describe
    from lumos.info.render import as_json, as_text

    print((as_json if values.json else as_text)(describe(values.path)), end="")


def _doctor(values, overrides):
    from lumos.doctor import examine
    from lumos.info.render import as_json, as_text

    join_processes()
    import jax

    facts = examine(values.workdir or "")
    if jax.process_index() == 0:
        print((as_json if values.json else as_text)(facts), end="")
    return 1 if facts["problems"] else 0


def _completion(values, overrides):
    from lumos.completion import SCRIPT, complete

    print("\n".join(complete(values.word, VERBS)) if values.word else SCRIPT, end="\n" * bool(values.word))


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
            text("config", "configs/demo.py", "config file with the variants tokenizer, tokens and transformer"),
            text("variant", "", "extra variant of the config file, such as smoke"),
        ),
        _demo,
        no_overrides="lumos demo takes no config overrides; copy configs/demo.py and pass it with --config",
    ),
    **data_verbs.VERBS,
    "train": Verb(
        group(
            _CONFIG,
            _WORKDIR,
            text("init_from", "", "workdir whose weights a new run starts from"),
            text("fresh", "", "parameters that start anew even so, such as lm_head,embed"),
            number("profile_at", 0, "step from which three steps are profiled; 0 = only on SIGUSR1"),
            switch("dry_run", False, "open the data, compile the step, print shapes and memory; train nothing"),
        ),
        _train,
        shows_fields=True,
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
            text("splits", "", "splits to encode, with commas; by default config.data.split and eval_split"),
        ),
        _tokenize,
    ),
    **evaluation_verbs.VERBS,
    **release_verbs.VERBS,
    "convert": Verb(
        group(
            text(
                "from",
                None,
                "lumos1 | cosmos (weights), lumos (a workdir), lumos1-tokens (pickles), release (of lumos export), clips (a config file)",
                required=True,
            ),
            text("input", None, "what to convert: weights, a workdir, tokens, or the config of clips with actions"),
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
    **findings_verbs.VERBS,
    **launch_verbs.VERBS,
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
    "doctor": Verb(
        group(
            text("workdir", "", "workdir, or bucket, that a run will write to"),
            switch("json", False, "print one JSON object instead"),
        ),
        _doctor,
        words=("workdir",),
        no_overrides="lumos doctor takes no config overrides",
    ),
    "completion": Verb(
        group(
            many(
                "word",
                "behind --: the words of a line, the last one to be completed; without any, the script for the shell",
            )
        ),
        _completion,
        no_overrides="lumos completion takes no config overrides",
    ),
    "help": Verb(
        group(text("field", "", "section, or section.field, of the config")),
        _help,
        words=("field",),
        no_overrides="lumos help takes the name of a field: lumos help optimizer.decay",
    ),
}
