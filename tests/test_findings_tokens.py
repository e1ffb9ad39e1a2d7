"""Worlds whose clips are written as learned tokens and as files: what is written is read back, and runs that share it train it once."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lumos.config import Config, DataConfig, OptimizerConfig, TokenizerConfig
from lumos.errors import UserError
from lumos.findings import learned_world, unit
from lumos.findings.file_world import FileWorld
from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.jpeg_world import JpegWorld
from lumos.findings.learned_world import LearnedWorld
from lumos.findings.measures import Reconstruction
from lumos.findings.training import Trained
from lumos.findings.worlds import World
from lumos.tokenizers.objective import TokenizerObjective
from lumos.tokenizers.pretrained import load

SMALL = LearnedWorld(
    frames=2, side=3, num_train=16, num_test=4, tokenizer={
        "train.num_steps": 2, "tokenizer.channels": 8, "tokenizer.patch_size": 8, "tokenizer.channel_mult": (1,),
        "tokenizer.mid_attention": False, "tokenizer.levels": (5, 3),
    },
)  # fmt: skip


def test_cells_are_read_back_from_their_pixels():
    world = LearnedWorld()
    codes = world.clips("test", 3).codes
    video = world.video(codes)
    assert video.shape == (3, 5, 40, 40, 3)
    square = video[:, :, 8:16, 16:24]
    np.testing.assert_array_equal(square, np.broadcast_to(world.picture(codes)[:, :, 1:2, 2:3], square.shape))
    noise = np.random.default_rng(0).integers(-30, 31, video.shape)
    np.testing.assert_array_equal(world.read(np.clip(video.astype(int) + noise, 0, 255)), codes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small world of seed 3 and its folder."""
    world = SMALL.for_run(3, smoke=False)
    return world, world.write(tmp_path_factory.mktemp("world") / "tokens")


@pytest.mark.slow
def test_tokens_are_those_of_the_tokenizer_in_their_folder(written):
    world, folder = written
    codes, tokenizer = world.clips("test", 4).codes, load(folder / "tokenizer")
    tokens = world.tokens_of(codes, folder)
    assert tokens.shape == (4, *world.grid) == (4, 2, 3, 3) and tokens.max() < world.num_codes == 15
    np.testing.assert_array_equal(tokens, tokenizer.encode(world.video(codes)))
    cells = world.cells_of(tokens, folder)
    np.testing.assert_array_equal(cells, world.read(tokenizer.decode(tokens)))
    assert cells.shape == codes.shape and (0 <= cells).all() and (cells < 20).all()


@pytest.mark.slow
def test_a_tokenizer_is_that_of_its_seed_and_trained_once(written, tmp_path, monkeypatch):
    world, folder = written
    other = load(SMALL.for_run(4, smoke=False).write(tmp_path / "other") / "tokenizer")
    assert (
        other.config == load(folder / "tokenizer").config
        and other.fingerprint != load(folder / "tokenizer").fingerprint
    )
    monkeypatch.setattr(learned_world, "_training", lambda config: pytest.fail("it was trained again"))
    assert world.write(folder) == folder


def finding(world):
    return Finding(
        name="small", claim="", paper="", published="", world=world, arms={"a": Arm()}, measures=(),
        checks=(Above(text="", high="a:x", low=0.0, expected=0.1),),
    )  # fmt: skip


def test_the_digest_covers_the_tokenizer():
    more = dataclasses.replace(SMALL, tokenizer={**SMALL.tokenizer, "train.num_steps": 3})
    assert unit.digest(finding(SMALL)) == unit.digest(finding(dataclasses.replace(SMALL))) != unit.digest(finding(more))


def test_a_tokenizer_that_merges_frames_is_refused():
    with pytest.raises(ValueError, match="temporal_compression=4; allowed: 1"):
        LearnedWorld(tokenizer={"tokenizer.temporal_compression": 4})


def test_reconstruction_of_an_exact_world_is_whole(tmp_path):
    for world in (World(num_test=4), FileWorld(num_test=4)):
        config = Config(data=DataConfig(path=str(tmp_path)))
        trained = Trained(config, world, None, 4, None)
        assert Reconstruction()(trained) == {"kept": 1.0}


def test_a_broken_file_shows_no_cells(tmp_path):
    world = FileWorld()
    codes = world.clips("test", 2).codes
    files = world.tokens_of(codes, tmp_path)
    assert files.shape == (2, 1, 1, 20)
    files[1, 0, 0, 0] += 1  # a run too long
    cells = world.cells_of(files, tmp_path)
    np.testing.assert_array_equal(cells[0], codes[0])
    assert (cells[1] == -1).all()


def test_a_prior_that_starts_late_is_not_there_before_and_whole_afterwards():
    video = np.random.default_rng(1).integers(0, 256, (2, 5, 16, 16, 3)).astype(np.uint8)
    of = lambda start: TokenizerObjective(
        Config(
            task="tokenizer", data=DataConfig(buckets=((5, 16, 16),)), optimizer=OptimizerConfig(ema_decay=0),
            tokenizer=TokenizerConfig(
                body="holistic", clip=(5, 16, 16), num_queries=4, channels=32, quantizer="svq", levels=(8,), code_dim=4,
                entropy_weight=0.0, prior_weight=0.1, prior_start=start,
            ),
        )
    )  # fmt: skip

    def loss(params, step, objective):
        out = objective.loss(params, {"video": video}, jax.random.key(0), step)
        return out.sum, out.metrics["prior"]

    late, always = of(10), of(0)
    params = late.definition.init(jax.random.key(0))
    (before, none), grads = jax.jit(jax.value_and_grad(lambda p, step: loss(p, step, late), has_aux=True))(
        params, jnp.int32(9)
    )
    after, prior = jax.jit(lambda p, step: loss(p, step, late))(params, jnp.int32(10))
    want = jax.jit(lambda p: loss(p, 0, always))(params)
    np.testing.assert_allclose((after, prior), want, rtol=1e-5)
    assert none == 0 < prior and before == pytest.approx(float(after - prior), rel=1e-5)
    assert not any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["vae"]["prior"]))
    assert 10 in late.new_terms_at and 10 not in always.new_terms_at


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(prior_start=5), "prior_start is for body 'holistic'"),
        (
            dict(body="holistic", num_queries=4, clip=(5, 16, 16), channels=32, prior_start=5),
            "prior_start=5 needs config.tokenizer.prior_weight",
        ),
    ],
)
def test_a_start_without_a_prior_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config(tokenizer=TokenizerConfig(**fields), data=DataConfig(buckets=((5, 16, 16),)))


def test_a_jpeg_file_is_what_pillow_writes_and_reads(tmp_path):
    world = JpegWorld(quality=60, length=160)
    codes = world.clips("test", 6).codes
    tokens = world.tokens_of(codes, tmp_path)
    for row, clip in zip(tokens[:, 0, 0], codes):
        file = io.BytesIO()
        Image.fromarray(world.picture(clip[0]).repeat(4, axis=0).repeat(4, axis=1)).save(
            file, "JPEG", quality=60, subsampling=0
        )
        inside = bytes((row[row > 0] - 1).astype(np.uint8))
        assert world._header + inside + b"\xff\xd9" == file.getvalue() and len(world._header) == 623
    np.testing.assert_array_equal(world.cells_of(tokens, tmp_path), codes)
    with pytest.raises(ValueError, match="length=40: a file has"):
        dataclasses.replace(world, length=40).tokens_of(codes, tmp_path)


def test_pieces_are_shorter_and_say_the_same_bytes(tmp_path):
    world = JpegWorld(pieces=320, num_train=256, length=112)
    world.prepare(tmp_path)
    codes = world.clips("test", 16).codes
    tokens, plain = world.tokens_of(codes, tmp_path), dataclasses.replace(world, pieces=0).tokens_of(codes, tmp_path)
    assert 256 < tokens.max() < world.num_codes == 321
    assert (tokens > 0).sum() < 0.8 * (plain > 0).sum()
    for row, clip in zip(tokens[:, 0, 0], codes):
        assert world._join(row, tmp_path) == world.encode(clip[0])
    anything = bytes(range(256))  # bytes that no file had are pieces too
    assert world._join(np.array(world._split(anything, tmp_path)), tmp_path) == anything


def test_a_jpeg_file_with_an_error_shows_nothing_where_pillow_shows_grey(tmp_path):
    world = JpegWorld()
    file = world.encode(world.clips("test", 1).codes[0, 0])
    rng = np.random.default_rng(0)
    noise = bytes(rng.integers(0, 255, len(file)).astype(np.uint8))
    for broken in (file[:-6], b"", noise):
        assert world.decode(broken) is None
        Image.open(io.BytesIO(world._header + broken + b"\xff\xd9")).load()
    assert world.decode(file) is not None
