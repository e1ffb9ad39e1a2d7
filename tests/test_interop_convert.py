"""`lumos convert`: weights and tokens into workdirs that the other verbs use, and back out."""

import collections
import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from test_interop_cosmos import random_stream
from test_interop_lumos1 import SPECIAL, read_all, write_checkpoint

from lumos import cli, config_loading, sharding
from lumos.config import Config, MeshConfig
from lumos.data import text as text_lib
from lumos.errors import UserError
from lumos.generation.released import Released
from lumos.interop import cosmos, lumos1, lumos1_tokens
from lumos.sequence import vocabulary
from lumos.tokenizers import pretrained
from lumos.videos.generator import Generator

START = 600  # of the visual ids: beyond the 512 pieces of the text model that ships
V = vocabulary.lumos1(64_000, START, 40, SPECIAL)
IDS = {"special_tokens": SPECIAL, "size_token_zero": 40, "visual_start": START, "vocab_size": V.size}
SMALL_RUN = [
    "--config.sequence.grid=(2, 4, 4)", "--config.data.batch_size=8",
    "--config.sequence.text_length=64", "--config.sequence.duration=1", "--config.sequence.fps=8",
    "--config.generate.steps=2", "--config.generate.guidance.scale=2.0",
]  # fmt: skip


def lumos(*arguments):
    assert cli.main([str(a) for a in arguments]) == 0


def token_list(frames, text=(5, 6, 7), duration=1, fps=8, seed=0):
    """Return what the released code pickles, and the codes in it."""
    codes = np.random.default_rng(seed).integers(0, 64_000, (frames, 4, 4))
    block = []
    for frame in codes + START:
        cells = np.concatenate([frame, np.full((4, 1), V.new_line)], axis=1).reshape(-1).tolist()
        block += [V.image_start, 41, 41, *cells, V.image_end]
    ids = [0, *text, V.separator, V.video_start, 40 + duration, 40 + fps, *block, V.video_end, V.separator]
    return [int(i) for i in ids], codes


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small checkpoint and a narrow tokenizer, and the workdirs made of them."""
    folder = tmp_path_factory.mktemp("convert")
    before = write_checkpoint(folder / "ckpt", vocab_size=V.size, num_hidden_layers=1)
    config = dataclasses.replace(cosmos.CONFIGS["dv4x8x8"], channels=4)
    cosmos.CosmosTokenizer(config, random_stream(config)[1]).save(folder / "cosmos")
    (folder / "ids.json").write_text(json.dumps(IDS))
    lumos("convert", "--from=cosmos", folder / "cosmos", f"--to={folder}/tokenizer")
    lumos(
        "convert", "--from=lumos1", folder / "ckpt", f"--to={folder}/run", f"--ids={folder}/ids.json",
        f"--tokenizer={folder}/tokenizer", *SMALL_RUN,
    )  # fmt: skip
    return folder, before


def test_weights_come_back_out_bit_for_bit(converted):
    folder, before = converted
    lumos("convert", "--from=lumos", folder / "run", f"--to={folder}/back")
    after = read_all(folder / "back")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].shape == after[name].shape and before[name].tobytes() == after[name].tobytes(), name
    official = [json.loads((folder / name / "config.json").read_text()) for name in ("ckpt", "back")]
    assert {name: official[1][name] for name in official[0]} == official[0]
    lumos("convert", "--from=lumos", folder / "tokenizer", f"--to={folder}/cosmos_back")
    for name, tensor in read_all(folder / "cosmos").items():
        np.testing.assert_array_equal(read_all(folder / "cosmos_back")[name], tensor)


@pytest.mark.slow
def test_a_converted_workdir_generates_from_text_and_images(converted, tmp_path):
    folder, _ = converted
    run = f"--workdir={folder}/run"
    lumos("generate", run, "--prompt=a cat", f"--out={tmp_path}/a.png", "--frames=1")
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    lumos("generate", run, "--prompt=a cat", f"--image={tmp_path}/a.png", f"--out={tmp_path}/a.gif")
    assert Image.open(tmp_path / "a.gif").n_frames == 5


@pytest.mark.slow
def test_the_generator_makes_the_tokens_of_lumos1_generate(converted):
    """`lumos generate` and the library call are one program on one sequence."""
    folder, _ = converted
    generator = Generator.load(folder / "run")
    settings = dataclasses.replace(generator.config.generate, sampler=Released(temperature=0.0))
    made = generator.generate(["a cat"], seed=3, settings=settings)
    model = lumos1.load(folder / "ckpt", **{k: v for k, v in IDS.items() if k != "vocab_size"})
    text = text_lib.instruct(generator.config, "a cat", (2, 4, 4))
    assert text.startswith("Generate a video with a resolution of 32x32, consisting of 8 frames at 8 frames per second")
    ids, length = generator.text.encode(text, 64)
    ids = model.generate(
        ids[64 - length :], size=(4, 4), fps=8, duration=1, num_frames=2, steps=2, guidance=2.0, temperature=0.0, seed=3
    )
    np.testing.assert_array_equal(ids[ids >= START].reshape(2, 4, 4) - START, made.tokens[0])


@pytest.mark.slow
def test_official_pickles_become_tokens_to_fine_tune_on(converted, tmp_path):
    folder, _ = converted
    (tmp_path / "files").mkdir()
    rows = []
    for i in range(9):
        ids, codes = token_list(3, text=range(5, 8 + i), seed=i)
        labels = [-100] * 10 + ids[10:]
        (tmp_path / f"files/{i}.pkl").write_bytes(pickle.dumps({"token": ids, "label": labels, "id": i}))
        rows.append({"file": f"/elsewhere/files/{i}.pkl", "len": len(ids), "id": i})
    (tmp_path / "record.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lumos(
        "convert", "--from=lumos1-tokens", tmp_path / "record.jsonl", f"--to={tmp_path}/tokens",
        f"--ids={folder}/ids.json", f"--tokenizer={folder}/tokenizer",
    )  # fmt: skip
    config = config_loading.load(str(folder / "run/config.json"), {"data.path": f"{tmp_path}/tokens"})
    from lumos.data.pipeline import make_pipeline
    from lumos.training.match_data import match_data

    config = match_data(config)
    with make_pipeline(config, "train", process_index=0, process_count=1, train=False) as pipeline:
        batch = next(pipeline)
    assert batch["tokens"].shape == (8, 2, 4, 4)  # the run's bucket takes the first of the three frames
    np.testing.assert_array_equal(batch["tokens"][2], token_list(3, seed=2)[1][:2])
    np.testing.assert_array_equal(batch["text"][2][-batch["text_length"][2] :], [0, *range(5, 10)])
    before = pretrained.load(folder / "tokenizer").fingerprint
    assert json.loads((tmp_path / "tokens/manifest.json").read_text())["tokenizer"]["fingerprint"] == before
    lumos(
        "train", f"--config={folder}/run/config.json", f"--workdir={folder}/run", f"--config.data.path={tmp_path}/tokens",
        "--config.data.eval_split=train", "--config.train.num_steps=2", "--config.train.num_samples=0",
        "--config.optimizer.learning_rate=1e-9", "--config.optimizer.warmup_steps=0", "--config.train.eval_batches=1",
    )  # fmt: skip
    losses = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[0]["step"] == 2
    # The first steps are those of the released weights.
    lumos("convert", "--from=lumos", folder / "run", f"--to={tmp_path}/tuned")
    for name, tensor in read_all(folder / "ckpt").items():
        np.testing.assert_allclose(read_all(tmp_path / "tuned")[name], tensor, atol=1e-6)


class _Evil:
    def __reduce__(self):
        return print, ("code that a pickle ran",)


@pytest.mark.parametrize(
    "item, message",
    [
        (_Evil(), "names builtins.print"),
        ({"token": [1, _Evil()], "label": [1, 2]}, "names builtins.print"),
        (collections.OrderedDict(token=[1]), "names collections.OrderedDict"),
        ({"token": np.arange(3), "label": [0, 1, 2]}, "only lists of integers"),
        ({"token": [1.0], "label": [1]}, "token is not a list of integers"),
        ({"token": [True], "label": [1]}, "token is not a list of integers"),
        ({"token": [1, 2], "label": [1]}, "2 tokens but 1 labels"),
        ({"token": [[1]], "label": [1]}, "not a list of integers"),
        ({"token": [2**40], "label": [1]}, "out of range"),
        ([1, 2], "expected a dict"),
        ({"token": [1], "code": "x"}, "expected a dict"),
    ],
)
def test_pickles_may_hold_lists_of_integers_only(tmp_path, capsys, item, message):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(item))
    with pytest.raises(UserError, match=message):
        lumos1_tokens.read_pickle(path)
    assert "ran" not in capsys.readouterr().out


def test_damaged_and_unfitting_pickles_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(UserError, match="not a readable pickle"):
        lumos1_tokens.read_pickle(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").unlink()
    with pytest.raises(UserError, match="no .pkl files"):
        lumos1_tokens.convert(tmp_path, tmp_path / "out", V)
    ids, _ = token_list(2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"token": ids[:40], "label": ids[:40], "id": 0}))
    with pytest.raises(UserError, match="a.pkl: a frame of the prompt is not a whole frame"):
        lumos1_tokens.convert(tmp_path, tmp_path / "out", V)
    for name, fps in (("a", 8), ("b", 12)):
        ids, _ = token_list(2, fps=fps)
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"token": ids, "label": ids, "id": 0}))
    with pytest.raises(UserError, match="several"):
        lumos1_tokens.convert(tmp_path, tmp_path / "out", V)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--from=lumos2", "x", "--to=y"], "allowed are lumos1, cosmos, lumos, lumos1-tokens"),
        (["--from=lumos1", "--to=y"], "what to convert"),
        (["--from=lumos1", "nowhere", "--to=y"], "no config.json"),
        (["--from=lumos", "nowhere", "--to=y"], "not a training workdir"),
        (["--from=cosmos", "nowhere", "--to=y"], "no .safetensors"),
    ],
)
def test_mistakes_are_one_line_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_hugging_face_tokenizer_serves_the_released_models(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "cat": 4, "runs": 5, "?": 6}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    text = text_lib.TextTokenizer(tmp_path / "tokenizer.json")
    row, length = text.encode("a cat runs", 6)
    np.testing.assert_array_equal(row, [0, 0, 0, 3, 4, 5])
    assert (length, text.vocab_size, text.decode(row)) == (4, 7, "a cat runs")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        (tmp_path / "b.json").write_text("{}")
        text_lib.TextTokenizer(tmp_path / "b.json")


def test_templates_surround_a_caption_once():
    template = "{frames} frames of {width}x{height} at {fps}:\n {caption}!"
    config = config_loading.override(Config(), {"text.template": template, "sequence.grid": "(5, 4, 8)"})
    full = text_lib.instruct(config, "a {cat}", (5, 4, 8))
    assert full == "24 frames of 64x32 at 12:\n a {cat}!"
    assert text_lib.instruct(config, full, (5, 4, 8)) == full
    assert text_lib.instruct(config, "a", (1, 4, 8)).startswith("1 frames of 64x32 at 1:")
    with pytest.raises(UserError, match="once"):
        config_loading.override(config, {"text.template": "{caption} {speed}"})


def test_large_models_load_shard_by_shard_onto_a_mesh(converted):
    folder, before = converted
    model = lumos1.load(
        folder / "ckpt",
        **{k: v for k, v in IDS.items() if k != "vocab_size"},
        mesh=sharding.make_mesh(MeshConfig(tensor=2)),
    )
    head = model.params["lm_head"]["kernel"]
    assert head.addressable_shards[0].data.shape == (64 // 4, V.size // 2)
    np.testing.assert_array_equal(jax.device_get(head), before["lm_head.weight"].T)
