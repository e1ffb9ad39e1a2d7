"""Worlds: actions from clips to tokens, and models that are played."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import tiny
import untrained
from tokens import (
    one_device,  # noqa: F401  (a fixture)
    write_tokens,
)

from lumos import config_loading
from lumos.config import Config, DataConfig
from lumos.data import actions
from lumos.data.index import index
from lumos.data.manifest import read_manifest
from lumos.data.records import RecordSource
from lumos.data.video import probe
from lumos.data.video_writer import write_video
from lumos.demo import demo
from lumos.errors import UserError
from lumos.evaluation.evaluate import evaluate
from lumos.sequence.streams import StreamConfig
from lumos.tokenizers.tokenize import tokenize
from lumos.tokenizers.wavelet import haar_matrix, haar_patch, haar_unpatch
from lumos.videos.conditions import parse_actions, planned_actions
from lumos.videos.video_files import Request, generate
from lumos.worlds import play
from lumos.worlds.player import Player, keys_of
from lumos.worlds.starts import Starts
from lumos.worlds.world import World

NAMES = ("none", "turn left", "turn right", "move forward")

# Actions become tokens ------------------------------------------------------------------------------------------------


def test_rows_of_a_stream_lead_to_their_frames():
    """A latent frame has the newest rows up to its last frame of pixels; none leads to the first frame."""
    led = np.arange(9)[:, None]
    encode = lambda **fields: StreamConfig(codes=10, **fields).encode(led, 4).tolist()
    assert encode() == [[10], [4], [8]]
    assert encode(rows=4) == [[10] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert encode(rows=6) == [[10] * 6, [10, 10, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8]]
    assert encode(leads=False) == [[10], [3], [7]]  # chosen at the frame before
    pairs = np.stack([np.arange(5), np.arange(5) + 1], axis=1)
    assert StreamConfig(codes=6, rows=2).encode(pairs, 2).tolist() == [[6] * 4, [1, 2, 2, 3], [3, 4, 4, 5]]


def test_bins_lose_half_a_bin_at_most():
    stream, values = StreamConfig(codes=256, low=-2.0, high=3.0), np.random.default_rng(0).uniform(-2, 3, (50, 7))
    codes = stream.quantize(values)
    assert np.abs(stream.values(codes) - values).max() <= 5 / 256 / 2 + 1e-6 and codes.max() < 256 <= stream.null
    assert stream.quantize([-9.0, 9.0]).tolist() == [0, 255]
    assert StreamConfig(codes=4).values([3]).tolist() == [3.0]


def test_what_is_no_code_is_refused():
    for values, message in (([4], "whole numbers below codes=4"), ([0.5], "low and high"), ([np.nan], "not finite")):
        with pytest.raises(UserError, match=message):
            StreamConfig(codes=4).quantize(values)
    with pytest.raises(ValueError, match="above high"):
        StreamConfig(low=2.0, high=1.0)


class Numbers:
    """A tokenizer whose codes are the brightness of the frames."""

    codebook_size, fingerprint = 256, "numbers"

    def __init__(self, config):
        self.config = config

    def token_shape(self, frames, height, width):
        return 1 + (frames - 1) // self.config.temporal_compression, 1, 1

    def encode(self, videos):
        return videos[:, :: self.config.temporal_compression, :1, :1, 0].astype(np.int32)


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_actions_of_a_list_reach_the_shards(tmp_path, kind):
    frames = np.repeat(np.arange(0, 170, 10, dtype=np.uint8), 32 * 32 * 3).reshape(17, 32, 32, 3)
    write_video(tmp_path / "clips" / "a.mp4", frames, 8)
    columns = {"action": np.arange(17) % 5, "reward": np.arange(17) / 16}
    if kind == "npz":
        np.savez(tmp_path / "clips" / "a.npz", **columns)
    else:
        (tmp_path / "clips" / "a.json").write_text(json.dumps({name: x.tolist() for name, x in columns.items()}))
    (tmp_path / "clips.csv").write_text(f"path,caption,actions\nclips/a.mp4,a clip,clips/a.{kind}\n")
    index(tmp_path / "clips.csv", tmp_path / "m.jsonl", DataConfig())
    (row,) = read_manifest(tmp_path / "m.jsonl")
    assert row["actions"] == f"{tmp_path}/clips/a.{kind}:action[0:17]"
    assert actions.read(row["actions"], "reward").shape == (17, 1)
    streams = StreamConfig(codes=5, rows=2), StreamConfig(name="reward", codes=16, high=1.0)
    config = config_loading.override(Config(), {
        "task": "tokenizer", "data.source": "clips", "data.path": str(tmp_path / "m.jsonl"), "data.buckets": "((9, 32, 32),)", "data.batch_size": "1",
        "data.streams": tuple(dataclasses.asdict(s) for s in streams), "data.split": "train", "data.eval_split": "train",
        "tokenizer.patch_size": "2", "tokenizer.temporal_compression": "2", "tokenizer.channel_mult": "(1, 1, 1)",
    })  # fmt: skip
    manifest = tokenize(config, Numbers(config.tokenizer), tmp_path / "tokens", splits=("train",))
    assert [(stream["name"], stream["tokens"]) for stream in manifest["streams"]] == [("action", 2), ("reward", 1)]
    records = list(RecordSource(sorted((tmp_path / "tokens").glob("*.array_record"))))
    assert len(records) == 2  # windows of 9 of 17 frames
    for record in records:
        first = round(record["tokens"][0, 0, 0] / 10)  # frame of the clip that the window begins with
        number = first + np.arange(0, 9, 2)
        want = np.stack([(number - 1) % 5, number % 5], axis=1)
        want[0] = 5
        np.testing.assert_array_equal(record["stream_0"], want)
        np.testing.assert_array_equal(record["stream_1"][1:, 0], np.minimum(number[1:], 15))
    with pytest.raises(UserError, match="different streams"):
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, streams=streams[:1]))
        tokenize(other, Numbers(config.tokenizer), tmp_path / "tokens", splits=("train",))


@pytest.mark.parametrize("frames", [1, 2])
def test_patches_may_have_fewer_frames(frames):
    matrix = haar_matrix(4, frames)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16 * frames) / (16 * frames), atol=1e-12)
    video = np.random.default_rng(0).random((2, 1 + 3 * frames, 8, 8, 3)).astype(np.float32)
    bands = haar_patch(video, 4, frames=frames)
    assert bands.shape == (2, 4, 2, 2, 48 * frames)
    np.testing.assert_allclose(haar_unpatch(bands, 4, frames=frames), video, atol=2e-6)
    if frames == 1:  # the first band is the mean of the patch in its frame
        np.testing.assert_allclose(bands[:, 2, ..., :3], video[:, 2].reshape(2, 2, 4, 2, 4, 3).mean((2, 4)), atol=1e-6)


# Worlds ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = write_tokens(tmp_path_factory.mktemp("tokens") / "tokens", num=8, streams=((5, 1),), grid=(4, 4, 4))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["streams"] = [dataclasses.asdict(StreamConfig(codes=4, names=NAMES)) | {"tokens": 1}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with untrained.make(
        1,
        sequence__streams=((5, 1),),
        data__path=str(folder),
    ) as made:
        yield made


@pytest.fixture(scope="module")
def world(generator):
    return World(generator, 2, undo=2)


def led_to_start(world, number):
    return int(world.starts.clip(number).streams[0][0, 0])


def played(world, row, keys):
    return np.concatenate([world.step({row: key})[row] for key in keys])


def test_a_world_is_its_start_its_seed_and_its_actions(world):
    """Whatever happens in other rows; a fork with other keys shares the past, bit for bit."""
    keys = [1, 1, 2, 3, 0, 1]
    given = world.reset(0, seed=3)
    alone = played(world, 0, keys)
    assert given.shape == (1, 32, 32, 3) and alone.shape == (6, 32, 32, 3)
    world.reset(1, seed=4, start=3)
    np.testing.assert_array_equal(world.reset(0, seed=3), given)
    beside = np.concatenate([world.step({0: key, 1: 2})[0] for key in keys[:3]])
    np.testing.assert_array_equal(beside, alone[:3])
    world.fork(0, 1)
    assert world.actions_of(1) == world.actions_of(0) == [led_to_start(world, 3), 1, 1, 2]
    both = [world.step({0: key, 1: (key + 1) % 4}) for key in keys[3:]]
    np.testing.assert_array_equal(np.concatenate([frames[0] for frames in both]), alone[3:])
    assert (np.concatenate([frames[1] for frames in both]) != alone[3:]).any()


def test_frames_are_taken_back(world):
    world.reset(0, seed=3)
    keys = [1, 1, 2, 3]
    frames = played(world, 0, keys)
    world.rewind(0, 2)
    np.testing.assert_array_equal(played(world, 0, keys[2:]), frames[2:])
    assert world.actions_of(0) == [led_to_start(world, 3), *keys]


def test_speculation_changes_no_frame(world):
    keys = [0, 0, 1, 1, 1, 2, 0]
    shown = {}
    for speculate in (False, True):
        player = Player(world, 0, seed=5, speculate=speculate)
        for key in keys:
            player.press(key)
            player.tick()
            player.look_ahead()
        shown[speculate] = np.stack(player.frames)
        assert len(player.latencies) == 3 and player.num_frames == 8
    np.testing.assert_array_equal(shown[True], shown[False])
    assert (player.drafted, player.kept) == (7, 3)  # of six that were tried


def test_a_recorded_session_is_data(world, tmp_path):
    player = Player(world, 0, seed=1)
    for key in (1, 2, 2):
        player.press(key)
        player.tick()
    player.save(tmp_path, "session_1")
    index(tmp_path / "clips.jsonl", tmp_path / "m.jsonl", DataConfig())
    (row,) = read_manifest(tmp_path / "m.jsonl")
    assert row["frames"] == 4 and actions.read(row["actions"])[:, 0].tolist() == [led_to_start(world, 1), 1, 2, 2]


def test_what_cannot_be_played_is_one_line(world, generator):
    with pytest.raises(UserError, match=r"action 4 of world 0; allowed: 0 to 3 \(none, turn left"):
        world.step({0: 4})
    with pytest.raises(UserError, match="world 1 has not begun"):
        World(generator, 2).step({1: 0})
    with pytest.raises(UserError, match="no tokens of split 'nowhere'"):
        Starts(generator.config, "nowhere")
    with pytest.raises(UserError, match="no streams beside the video; this model has 1"):
        generator.generate("a circle")
    other = copy.copy(generator)
    other.config = tiny.transformer(tokenizer_workdir="fake")
    with pytest.raises(UserError, match="a world that is played has one stream"):
        World(other)


def test_a_clip_of_a_prompt_of_actions_is_that_of_the_world(world, generator):
    """`generate` makes a whole clip of codes and actions; the world the same frames one by one."""
    clip, keys = world.starts.clip(2), [1, 2]
    led = np.array([[led_to_start(world, 2)], [1], [2]], np.int32)
    made = generator.generate(clip.caption, seed=2, given=clip.codes[None, :1], streams=[led])
    world.reset(0, seed=2)
    played(world, 0, keys)
    np.testing.assert_array_equal(np.asarray(world.live(0).session.codes(2)), made.tokens[:, 2])


def test_actions_of_the_command_line(generator):
    assert parse_actions("turn left*2, 3,none", NAMES) == [1, 1, 3, 0]
    assert planned_actions(generator.config, "turn right*2", 2, 1).tolist() == [[4], [4], [2], [2]]
    for text, message in (
        ("jump", "allowed: none, turn left"),
        ("4", "'4'"),
        ("none*x", r"none\*x"),
        (",", "names no action"),
    ):
        with pytest.raises(UserError, match=message):
            parse_actions(text, NAMES)


# Keys and pages -------------------------------------------------------------------------------------------------------


def test_keys_follow_from_the_names_of_actions():
    keys = keys_of(NAMES)
    assert keys == {
        "0": 0,
        "1": 1,
        "2": 2,
        "3": 3,
        "ArrowLeft": 1,
        "a": 1,
        "ArrowRight": 2,
        "d": 2,
        "ArrowUp": 3,
        "w": 3,
    }
    assert keys_of(("noop", "fire", "right", "left"))[" "] == 1
    assert play.keys_in("\x1b[Da\x1b[5q") == ["ArrowLeft", "a", "q"]


def test_a_frame_in_a_terminal_is_half_blocks():
    frame = np.arange(3 * 2 * 3, dtype=np.uint8).reshape(3, 2, 3)
    lines = play.as_blocks(frame).split("\r\n")
    assert len(lines) == 2 and lines[0].startswith("\x1b[38;2;0;1;2;48;2;6;7;8m▀") and lines[0].endswith("▀\x1b[0m")


def test_the_page_plays(world, tmp_path):
    """What a page sends, by its messages: frames come under the key that is held, and the session is recorded."""
    from test_serve import until

    from lumos.streaming.serve import Viewer

    arcade, sent = play.Arcade(world, str(tmp_path)), []
    viewer = Viewer(sent.append)
    told = lambda: [json.loads(data) for data in sent if isinstance(data, str)]
    shown = lambda: [json.loads(data.partition(b"\n")[0]) for data in sent if isinstance(data, bytes)]
    arcade.enter(viewer)
    for message in (
        {"do": "act", "action": 1},
        {"do": "hello"},
        {"do": "start", "seed": 3},
        {"do": "act", "action": 2},
    ):
        arcade.ask(viewer, message)
    until(lambda: len(shown()) >= 4)
    arcade.ask(viewer, {"do": "jump"})
    until(lambda: len(told()) == 4)
    assert ["error" in t for t in told()] == [True, False, False, True] and told()[1]["actions"] == list(NAMES)
    assert [frame["action"] for frame in shown()][:4] == [0, 2, 2, 2] and shown()[3]["number"] == 3
    arcade.leave(viewer)
    until(lambda: list(tmp_path.glob("*.mp4")))
    arcade.stop()
    with np.load(next(tmp_path.glob("*.npz"))) as columns:
        assert columns["action"][:4].tolist() == [0, 2, 2, 2]
    assert len(arcade.latencies) == 1


def test_a_key_is_answered_at_once(world, monkeypatch):
    """A frame that is due in a minute comes with another key, and under no key that is held already."""
    from test_serve import until

    from lumos.streaming.serve import Viewer

    monkeypatch.setattr(world.generator, "config", dataclasses.replace(
        world.generator.config, generate=dataclasses.replace(world.generator.config.generate, fps=1 / 60)
    ))  # fmt: skip
    arcade, sent = play.Arcade(world), []
    viewer = Viewer(sent.append)
    shown = lambda: [json.loads(x.partition(b"\n")[0])["action"] for x in sent if isinstance(x, bytes)]
    arcade.enter(viewer)
    for number, message in enumerate(({"do": "start"}, *({"do": "act", "action": i} for i in (2, 2, 1)))):
        arcade.ask(viewer, message)
        until(lambda count=(1, 2, 2, 3)[number]: len(shown()) >= count)
    assert shown() == [0, 2, 1]
    arcade.stop()


def test_answers_are_timed_at_the_page(world, monkeypatch):
    from lumos.evaluation import world as measures

    monkeypatch.setattr(measures, "_KEYS", 5)
    found, _ = measures._answers(world)
    assert set(found) == {"latency_ms", "latency_p95_ms", "frames_per_s"}
    assert 0 < found["latency_ms"].value <= found["latency_p95_ms"].value < 60_000 and found["frames_per_s"].value > 0


# Environments ---------------------------------------------------------------------------------------------------------


def test_environments_are_those_of_gymnasium(world):
    gymnasium = pytest.importorskip("gymnasium")
    from lumos.worlds.env import WorldEnv

    def bright(before, keys, after):
        return after.mean((1, 2, 3)) - before.mean((1, 2, 3)), keys == 3

    env, keys = WorldEnv(world, reward=bright, max_steps=4), [[1, 1], [0, 2], [3, 0], [1, 1], [1, 3]]
    assert isinstance(env, gymnasium.vector.VectorEnv) and env.single_action_space.n == 4

    def run():
        first, _ = env.reset(seed=7)
        return [(first, None, None, None)] + [env.step(np.array(k))[:4] for k in keys]

    one, two = run(), run()
    for a, b in zip(one, two):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)
    assert one[0][0] in env.observation_space
    terminated, truncated = (np.stack([step[i] for step in one[1:]]).tolist() for i in (2, 3))
    assert terminated == [[False, False]] * 2 + [[True, False]] + [[False, False]] + [[False, False]]
    assert truncated == [[False, False]] * 3 + [[False, True]] + [[False, False]]
    np.testing.assert_allclose(one[1][1], one[1][0].mean((1, 2, 3)) - one[0][0].mean((1, 2, 3)))
    assert one[4][1][0] == 0  # the step that begins anew is worth nothing
    with pytest.raises(UserError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])


@pytest.mark.slow
def test_a_world_from_nothing_by_one_command(tmp_path, monkeypatch, one_device):  # noqa: F811
    """Its recordings, tokenizer, tokens, transformer and report; what is measured has the right names."""
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    world = demo(tmp_path / "doom", "configs/world_vizdoom.py", "smoke")["world"]
    names = "psnr ssim psnr_tokenizer control left_right latency_ms frames_per_s read_back_real read_back_shuffled read_back_last_to_first alive"
    assert set(names.split()) | {f"delta{t}_psnr_{k}" for t in (1, 4, 8) for k in ("random", "shuffled")} <= set(world)
    assert 0 <= world["control"] <= 1 and world["frames_per_s"] > 0
    page = (tmp_path / "doom" / "report" / "index.html").read_text()
    assert "delta4_psnr_random" in page and (tmp_path / "doom" / "report" / "control.png").exists()
    clip = tmp_path / "left.mp4"
    run = tmp_path / "doom" / "transformer"
    (made,) = generate(run, Request(actions="turn left*3,none"), clip)
    assert probe(made).frames == 5
    with pytest.raises(UserError, match="evaluate it with --what=world"):
        evaluate(run, tmp_path / "out")
