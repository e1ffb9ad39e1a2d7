"""Latent actions: what their codes mean where that is known, labels in shards, and training beside a transformer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import moves
import numpy as np
import pytest
from tokens import one_device, run_config  # noqa: F401  (a fixture)

from lumos import cli
from lumos.data.records import RecordSource
from lumos.errors import UserError
from lumos.evaluation.evaluate import evaluate
from lumos.latent_actions import model as latent
from lumos.latent_actions.label import label
from lumos.latent_actions.mapping import Mapping
from lumos.latent_actions.objective import ActionsObjective
from lumos.latent_actions.trained import Labeller
from lumos.slots import slot
from lumos.training.cotraining import CotrainedObjective
from lumos.training.loop import train
from lumos.training.match_data import match_data
from lumos.worlds.starts import Starts


def config_of(tokens, **changes):
    defaults = {
        "task": "actions", "actions__codes": 6, "actions__code_dim": 8, "actions__width": 32, "optimizer__learning_rate": 3e-3, "optimizer__warmup_steps": 20, "optimizer__weight_decay": 0.01, "optimizer__ema_decay": 0.0,
        "train__trackers": (), "data__batch_size": 16, "train__num_steps": 2, "train__log_every": 100, "train__checkpoint_every": 0, "evaluate__num_clips": 64,
    }  # fmt: skip
    return run_config(tokens, sequence__grid=(0, 0, 0), model__visual_vocab=0, **(defaults | changes))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return moves.write(tmp_path_factory.mktemp("moves") / "tokens")


@pytest.fixture(scope="module")
def run(tokens, one_device):  # noqa: F811
    workdir = tokens.parent / "actions"
    return workdir, train(config_of(tokens), workdir)


@pytest.fixture(scope="module")
def labelled(tokens, run):
    return label(tokens, Labeller.load(run[0]), tokens.parent / "labelled", keep=True), tokens.parent / "labelled"


def records(folder, split):
    source = RecordSource(sorted(folder.glob(f"{split}-*.array_record")))
    return [source[i] for i in range(len(source))]


@pytest.mark.slow
def test_codes_are_the_moves(tokens, one_device, tmp_path):  # noqa: F811
    """Nothing but tokens is trained on. The moves of clips that were not seen are read off the codes, which tell all of the next frame."""
    results = train(config_of(tokens, train__num_steps=300), tmp_path / "run")
    assert results["nll"] < 0.01 and results["nll_shuffled"] > 10 * results["nll"] and results["accuracy"] > 0.99
    assert 3.5 < results["perplexity"] <= 6 and results["use"] >= 4 / 6
    found = evaluate(tmp_path / "run", tmp_path / "report", {"evaluate.batch_size": "32"})["actions"]
    assert found["action_accuracy"] > 0.95 > 0.4 > found["action_chance"] and found["action_information"] > 0.9
    labeller, rng = Labeller.load(tmp_path / "run"), np.random.default_rng(7)
    clips, truth = zip(*(moves.clip(rng) for _ in range(80)))
    named, truth = np.stack(labeller(list(clips)))[:, 1:], np.stack(truth)[:, 1:]
    mapping = Mapping.learn(named[:16], truth[:16], 6, 4)
    assert mapping.accuracy(named[16:], truth[16:]).mean() > 0.95
    assert set(mapping.action_of[mapping.code_of]) == {0, 1, 2, 3}


def test_shards_are_labelled_once_as_with_real_actions(tokens, run, labelled, tmp_path, capsys):
    manifest, folder = labelled
    assert [stream["name"] for stream in manifest["streams"]] == ["action", "latent_action"]
    before, after = records(tokens, "validation"), records(folder, "validation")
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one["tokens"], two["tokens"])
        np.testing.assert_array_equal(one["stream_0"], two["stream_0"])
        assert (
            two["stream_1"].shape == (moves.FRAMES, 1)
            and two["stream_1"][0] == 6
            and (two["id"], one["caption"]) == (one["id"], two["caption"])
        )
    codes = np.concatenate(
        [row["stream_1"][1:, 0] for split in ("train", "validation", "test") for row in records(folder, split)]
    )
    assert manifest["latent_actions"]["codes"] == np.bincount(codes, minlength=6).tolist()
    missing = folder / "test-00000-of-00001.array_record"
    whole, others = missing.read_bytes(), (folder / "train-00000-of-00001.array_record").stat().st_mtime_ns
    missing.unlink()  # of a run that was killed
    out = tmp_path / "alone"
    assert label(tokens, Labeller.load(run[0]), folder, keep=True) == manifest and missing.read_bytes() == whole
    assert (folder / "train-00000-of-00001.array_record").stat().st_mtime_ns == others
    assert not cli.main(["data", "label", f"--tokens={tokens}", f"--workdir={run[0]}", f"--out={out}"])
    assert "--config.sequence.streams=((7, 1),)" in capsys.readouterr().out
    np.testing.assert_array_equal(records(out, "validation")[3]["stream_0"], after[3]["stream_1"])
    with pytest.raises(UserError, match="holds other tokens, or labels of another model"):
        label(tokens, Labeller.load(run[0]), folder)
    # What is measured of a world finds the model that named its actions, and knows it from others.
    assert Labeller.of_tokens(str(tokens)) is None
    assert Labeller.of_tokens(str(out)).fingerprint == manifest["latent_actions"]["fingerprint"]
    named = json.loads((out / "manifest.json").read_text())
    for change, message in (
        ({"fingerprint": "other"}, "label them anew"),
        ({"workdir": str(tmp_path / "gone")}, "gone"),
    ):
        (tmp_path / "manifest.json").write_text(
            json.dumps(named | {"latent_actions": named["latent_actions"] | change})
        )
        with pytest.raises(UserError, match=message):
            Labeller.of_tokens(str(tmp_path))
    # A world begins with them as with actions.
    config = match_data(config_of(out, task="transformer", sequence__streams=((7, 1),)))
    assert Starts(config).streams[0].name == "latent_action" and Starts(config).clip(0).streams[0].shape == (5, 1)


def test_evaluation_measures_codes_and_real_actions(run, tmp_path):
    results = evaluate(run[0], tmp_path, {"evaluate.batch_size": "32"})["actions"]
    assert (
        0 <= results["action_information"] <= 1 and 0.2 <= results["action_chance"] <= results["action_accuracy"] + 0.1
    )
    assert results["nll"] > 0 and 1 <= results["perplexity"] <= 6 and (tmp_path / "index.html").exists()


def test_a_code_names_the_same_whatever_is_around(run):
    """Labels of a clip are those of its pairs of frames, in any batch and behind any start."""
    labeller, rng = Labeller.load(run[0]), np.random.default_rng(5)
    clips = [moves.clip(rng)[0] for _ in range(70)]  # more pairs than a program takes at once
    together = labeller(clips)
    np.testing.assert_array_equal(together[69], labeller([clips[69]])[0])
    np.testing.assert_array_equal(together[3][3:], labeller([clips[3][2:]])[0][1:])


def test_known_tables():
    codes, actions = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    mapping = Mapping.learn(codes, actions, 3, 3)
    assert mapping.action_of.tolist() == [0, 2, 2] and mapping.code_of.tolist() == [0, 0, 1]
    np.testing.assert_allclose(mapping.information, (np.log(2), 1.5 * np.log(2)))
    assert mapping.accuracy(codes, actions).tolist() == [True, False, True, True]
    independent = Mapping.learn(np.arange(4) % 2, np.arange(4) // 2, 2, 2).information
    np.testing.assert_allclose(independent, (0, np.log(2)), atol=1e-12)


def test_pairs_stand_behind_their_past():
    tokens = jnp.arange(4).reshape(1, 4, 1, 1)
    assert latent.pairs(tokens, 2)[..., 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert latent.as_stream(jnp.array([1, 2, 0, 1]), 2, 7).tolist() == [[[7], [1], [2]], [[7], [0], [1]]]


# Beside a transformer -----------------------------------------------------------------------------------------------


def cotrained(tokens, **changes):
    settings = {"task": "transformer", "actions__weight": 1.0, "sequence__streams": ((7, 1),), "data__batch_size": 8}
    return match_data(config_of(tokens, **(settings | changes)))


def batch_of(tokens, num=8):
    rows = records(tokens, "train")[:num]
    text = {"text": np.full((num, 6), 7, np.int32), "text_length": np.full(num, 6, np.int32)}
    return {"tokens": np.stack([row["tokens"] for row in rows]).astype(np.int32)} | text


@pytest.mark.slow
def test_training_beside_a_transformer_trains_the_codebook(tokens):
    """Its gradient is that of its own loss, which reaches the inverse model, its codes move, and they are the labels of the transformer."""
    config = cotrained(tokens)
    objective, alone, batch, key = (
        CotrainedObjective(config),
        ActionsObjective(config),
        batch_of(tokens),
        jax.random.key(3),
    )
    params = jax.jit(objective.definition.init)(jax.random.key(0))

    def mean(objective, key):
        def of(params):
            loss = objective.loss(params, batch, key)
            return loss.sum / loss.weight, loss

        return jax.jit(jax.grad(of, has_aux=True))

    gradient, loss = mean(objective, key)(params)
    own, _ = mean(alone, jax.random.fold_in(key, 8))(params["latent_actions"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-3), gradient["latent_actions"], own)
    assert np.abs(own["inverse"]["older"]["kernel"]).max() > 0 and np.abs(gradient["embed_tokens"]).max() > 0
    after = objective.update_statistics(params, loss.statistics)
    codebook = lambda params: params["latent_actions"]["codebook"]["codes"]["codebook"]
    assert (codebook(params) != codebook(after)).any(axis=1).all()
    named = lambda params: objective._labelled(params, batch)["stream_0"]
    assert (
        named(after).shape == (8, moves.FRAMES, 1)
        and (named(after)[:, 0] == 6).all()
        and (named(params) != named(after)).any()
    )
    assert objective.groups["latent_actions"]["codebook"]["total"] == "frozen"  # no optimizer decays what is counted


@pytest.mark.slow
def test_accumulation_equals_one_batch(tokens):
    config = cotrained(tokens, data__batch_size=4)
    objective, batch = CotrainedObjective(config), batch_of(tokens, 4)
    params, key = jax.jit(objective.definition.init)(jax.random.key(0)), jax.random.key(1)
    totals = jax.tree.map(lambda x: 2 * x, objective.weights(batch, key))
    of = jax.jit(lambda totals: objective.loss(params, batch, key, totals=totals))
    one, half = of(objective.weights(batch, key)), of(totals)
    assert half.weight == one.weight  # two equal microbatches add up to twice the sums over twice the weight
    np.testing.assert_allclose(half.sum, one.sum, rtol=1e-6)


@pytest.mark.slow
def test_a_cotrained_run_labels_and_generates(tokens, one_device, tmp_path):  # noqa: F811
    config = cotrained(tokens, train__num_steps=4, train__eval_batches=1, generate__guidance=slot("none"))
    results = train(config, tmp_path / "run")
    assert np.isfinite(results["nll"])
    manifest = label(tokens, Labeller.load(tmp_path / "run"), tmp_path / "labelled")
    assert sum(manifest["latent_actions"]["codes"]) == 3 * 128 * (moves.FRAMES - 1)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=6)), tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"actions__weight": 1.0}, "trains latent actions beside a transformer: set it to 0 with task 'actions'"),
        ({"actions__width": 40}, "must be at least 2, config.actions.width=40 a multiple of 32"),
        ({"task": "transformer", "actions__weight": 1.0}, r"set config.sequence.streams=\(\(7, 1\),\), one more than"),
        ({"actions__codes": 1}, "config.actions.codes=1 must be at least 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_of("tokens", **changes)


def test_other_runs_have_no_latent_actions(tokens, tmp_path):
    config = match_data(config_of(tokens, task="transformer"))
    tmp_path.joinpath("config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(UserError, match="holds a run with task 'transformer' and no latent actions"):
        Labeller.load(tmp_path)
