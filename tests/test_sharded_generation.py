"""Clips are the same for any number of devices and processes, in the program that `lumos plan` compiles."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import write_runs

from lumos import cli, config_loading, sharding
from lumos.checkpoint_steps import resolve
from lumos.errors import UserError
from lumos.evaluation import measures
from lumos.evaluation.subject import Subject
from lumos.generation import numbers
from lumos.planning import aot
from lumos.videos.generator import Generator
from lumos.videos.prompts import read_prompts

REPO = Path(__file__).resolve().parents[1]
PROMPTS = [f"red {i}" for i in range(64)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def on_eight(run):
    return Generator.load(run, {"evaluate.batch_size": "64"})


@pytest.fixture(scope="module")
def on_one(run):
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = sharding.make_mesh
        patch.setattr(sharding, "make_mesh", lambda mesh, devices=None: make_mesh(mesh, devices or jax.devices()[:1]))
        return Generator.load(run, {"evaluate.batch_size": "64"})


@pytest.fixture(scope="module")
def clips(on_one):
    return on_one.generate(PROMPTS, seed=5)


def test_eight_devices_make_the_clips_of_one(on_eight, clips):
    assert on_eight.mesh.size == 8
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(on_eight.params)]
    assert sum(split) > len(split) / 2
    made = on_eight.generate(PROMPTS, seed=5)
    np.testing.assert_array_equal(made.tokens, clips.tokens)
    np.testing.assert_array_equal(made.videos, clips.videos)
    assert len(np.unique(clips.tokens)) > 10


def test_batches_change_nothing(on_eight, clips):
    """13 clips in batches of 8 (5 asked for, 8 devices): the last one is filled up."""
    small = on_eight.with_settings(config_loading.override(on_eight.config, {"evaluate.batch_size": "5"}))
    assert [len(rows) for rows in small.batches(13)] == [8, 8] and small.batches(13)[1].tolist()[-4:] == [12] * 4
    np.testing.assert_array_equal(small.generate(PROMPTS[:13], seed=5).tokens, clips.tokens[:13])


def test_the_branches_of_guidance_are_split_too(on_eight, clips):
    """4 clips are 8 rows with guidance, one for each device: none is filled up."""
    assert [len(rows) for rows in on_eight.batches(4, branches=2)] == [4]
    assert [len(rows) for rows in on_eight.batches(3, branches=2)] == [4] and len(on_eight.batches(4)[0]) == 8
    np.testing.assert_array_equal(on_eight.generate(PROMPTS[:4], seed=5).tokens, clips.tokens[:4])


@pytest.mark.slow
def test_a_bounded_cache_is_split_too(on_eight, on_one):
    settings = dataclasses.replace(
        on_one.config.generate,
        cache=config_loading.override(on_one.config, {"generate.cache": "window"}).generate.cache,
    )
    one, eight = (g.generate(PROMPTS[:4], settings=settings).tokens for g in (on_one, on_eight))
    np.testing.assert_array_equal(one, eight)


def test_plan_compiles_the_program_that_runs(on_eight, monkeypatch):
    planned = {}

    def lower(mesh, function, *arguments):
        with jax.set_mesh(mesh):
            planned["text"] = function.lower(*arguments).as_text()

    monkeypatch.setattr(aot, "_compile", lower)
    aot.compile_generate(on_eight.config, on_eight.mesh)
    structure, values = numbers.split(on_eight.config.generate)
    rows, grid = 64, on_eight.config.sequence.grid
    text, length = on_eight.encode_prompts(PROMPTS)
    arrays = on_eight._put((text, length, np.zeros((rows, *grid), np.int32), np.zeros((rows, 2), np.uint32)))
    with on_eight.in_mesh():
        lowered = on_eight._programs(grid[0], 0, structure).lower(on_eight.params, *arrays, values)
    assert lowered.as_text() == planned["text"]


def test_a_device_of_eight_has_an_eighth_of_the_work(on_eight, on_one, clips):
    work = []
    for generator in (on_eight, on_one):
        structure, values = numbers.split(generator.config.generate)
        text, length = generator.encode_prompts(PROMPTS)
        grid = generator.config.sequence.grid
        arrays = generator._put((text, length, np.zeros((64, *grid), np.int32), np.zeros((64, 2), np.uint32)))
        with generator.in_mesh():
            program = generator._programs(grid[0], 0, structure).lower(generator.params, *arrays, values).compile()
        work.append(program.cost_analysis()["flops"])
    assert 7 < work[1] / work[0] < 9


def test_numbers_are_arguments_and_structure_is_not(on_one, clips):
    base = on_one.config.generate
    change = lambda **values: dataclasses.replace(base, **values)
    stronger = dataclasses.replace(base.guidance, scale=5.0)
    assert numbers.split(base)[0] == numbers.split(change(guidance=stronger))[0]
    assert numbers.split(base)[1] == {"guidance.scale": 3.0, "sampler.temperature": 1.0}
    off = dataclasses.replace(base.guidance, scale=1.0)
    assert numbers.split(base)[0] != numbers.split(change(guidance=off))[0]
    assert numbers.split(base)[0] != numbers.split(change(steps=4))[0]
    assert numbers.split(change(top_p=0.9))[1]["top_p"] == 0.9
    assert numbers.join(*numbers.split(change(top_p=0.9))) == change(top_p=0.9)
    made = on_one.generate(PROMPTS[:8], seed=5, settings=change(guidance=stronger))
    assert (made.tokens != clips.tokens[:8]).any()
    cold = dataclasses.replace(base.sampler, temperature=0.0)
    assert (on_one.generate(PROMPTS[:8], seed=5, settings=change(sampler=cold)).tokens != clips.tokens[:8]).any()


def test_weights_and_steps_are_chosen(run, on_one, clips):
    assert resolve(run, "") == [3] and resolve(run, "best") == [2] and resolve(run, "all") == [1, 2, 3]
    assert resolve(run, "3,1") == [1, 3]
    for text, message in (("7", "no checkpoint of step 7"), ("first", "give a number"), ("1,x", "give a number")):
        with pytest.raises(UserError, match=message):
            resolve(run, text)
    (run.parent / "plain" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint in"):
        resolve(run.parent / "plain", "best")
    raw = Generator.load(run, {"model.param_dtype": "bfloat16"}, 2, "raw")
    ema = Generator.load(run, None, 2, "ema")
    for a, b in zip(jax.tree.leaves(raw.params), jax.tree.leaves(ema.params), strict=True):
        assert a.dtype == jnp.bfloat16 and b.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray((2 * b).astype(jnp.bfloat16), np.float32))
    with pytest.raises(UserError, match="allowed: ema, raw"):
        Generator.load(run, None, 2, "newest")
    with pytest.raises(UserError, match="does not fit"):
        Generator.load(run, {"mesh.fsdp": "3"})


def test_a_mesh_of_another_machine_does_not_matter(run, tmp_path):
    values = json.loads((run / "config.json").read_text())
    values["mesh"] |= {"fsdp": 64, "tensor": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    assert dict(Generator.load(tmp_path).mesh.shape)["fsdp"] == 8


def test_prompts_are_read_from_files(tmp_path):
    for name, text in (
        ("a.txt", "\ufeffone\n\n two, three \n"), ("a.csv", 'id,prompt\n1,one\n2,"two, three"\n'),
        ("a.jsonl", '{"caption": "one"}\n{"prompt": "two, three", "text": "no"}\n'),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert read_prompts(tmp_path / name) == ["one", "two, three"]
    for name, text, message in (
        ("b.md", "x", "ends in .txt"), ("b.txt", "\n", "no prompt"), ("b.csv", "id\n1\n", "line 2: no text"),
        ("b.jsonl", "{}\n", "line 1: no text"), ("c.jsonl", "[1]\n", "line 1: not a JSON"), ("d.txt", None, "No such file"),
    ):  # fmt: skip
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / name)


def test_likelihood_is_the_same_on_eight_devices(run, on_eight, on_one):
    tokenizer_config = config_loading.parse(json.loads((run.parent / "tokenizer" / "config.json").read_text()))
    one, eight = (
        measures.likelihood(
            Subject(g.with_settings(config_loading.override(g.config, {"evaluate.batch_size": "8"})), tokenizer_config)
        )[0]
        for g in (on_one, on_eight)
    )
    for name in one:
        np.testing.assert_allclose(one[name].value, eight[name].value, rtol=1e-5)
    assert one["nll"].low < one["nll"].value < one["nll"].high and one["nll"].n == 8
    np.testing.assert_allclose(one["nats_per_video"].value, 48 * one["nll"].value, rtol=0.05)


@pytest.mark.slow
def test_two_processes_write_the_clips_of_one(run, tmp_path, on_one):
    """`lumos launch --local`: each process holds a part of the weights and of the rows, and decodes some of the clips."""
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS[:3]))
    flags = [f"--workdir={run}", f"--prompts={tmp_path}/p.txt", "--samples_per_prompt=2", "--seed=5", "--step=best"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [
        sys.executable,
        "-m",
        "lumos",
        "launch",
        "--local",
        "--num_processes=2",
        "--devices_per_process=2",
        "--",
        "generate",
    ]
    done = subprocess.run([*command, *flags, f"--out={tmp_path}/two"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert cli.main(["generate", *flags, f"--out={tmp_path}/one"]) == 0
    names = [f"{i:03d}-{j}.mp4" for i in range(3) for j in range(2)]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with av.open(str(tmp_path / "two" / "001-1.mp4")) as video:
        facts = dict(line.split(": ", 1) for line in video.metadata["comment"].splitlines())
    assert (facts["prompt"], facts["seed"], facts["step"]) == (PROMPTS[1], "8", "2")
