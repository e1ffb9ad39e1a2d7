"""The verbs that make and publish releases: their flags, and the functions that they call."""

from __future__ import annotations

from lumos import outputs
from lumos.flag_definitions import Verb, group, switch, text


def _export(values, overrides):
    outputs.check_folder(values.to, "--to")
    from lumos.release.export import export

    names = ("step", "weights", "dtype", "report", "license")
    facts = export(values.workdir, values.to, **{name: values[name].value for name in names})
    size = sum(facts["files"].values())
    number = len(facts["files"]) + 1  # with the list itself, release.json
    print(
        f"{values.to}: {facts['task']} of step {facts['step']}, {number} files, {size / 1e9:.3g} GB; see its README.md"
    )


def _upload(values, overrides):
    from lumos.release.hub import upload

    print(upload(values.folder, values.to, private=values.private))


VERBS: dict[str, Verb] = {
    "export": Verb(
        group(
            text("workdir", None, "training workdir of a transformer or a tokenizer", required=True),
            text("to", None, "folder to write", required=True),
            text("step", "", "checkpoint: a number, or best; by default the newest"),
            text("weights", "", "ema | raw; the EMA where there is one"),
            text("dtype", "", "of a transformer's tensors, such as bfloat16; by default as they are"),
            text("report", "", "folder that lumos evaluate wrote: its figures go into the model card"),
            text("license", "", "of the weights, as the model card names it, such as apache-2.0"),
        ),
        _export,
        no_overrides="lumos export takes no config overrides: a release holds the config of its run",
    ),
    "upload": Verb(
        group(
            text("folder", None, "release, written by lumos export"),
            text("to", None, "hf://organisation/name"),
            switch("private", False, "only you and your organisation see it"),
        ),
        _upload,
        words=("folder", "to"),
        no_overrides="lumos upload takes no config overrides",
    ),
}
