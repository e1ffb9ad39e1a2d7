"""The recipes of configs/recipes: each loads, trains and generates, and is the method that its paper describes."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tokens import NUM_CODES, one_device, write_tokens  # noqa: F401  (a fixture)

from lumos import config_loading, recipes_docs
from lumos.checkpoint import Checkpointer
from lumos.errors import UserError
from lumos.generation.plan import history_mask
from lumos.generation.policy import EMPTY
from lumos.generation.sampler import row_keys
from lumos.layouts import make_layout
from lumos.runtime import metrics_writer
from lumos.sequence.rule import visible
from lumos.sequence.tokens import CODE, START
from lumos.training.from_config import make_objective
from lumos.training.loop import train
from lumos.videos.generator import make_engine

REPO = Path(__file__).resolve().parents[1]
SYSTEMS = {system.name: system for system in recipes_docs.systems()}


def recipe(name, **overrides):
    overrides = {"model.text_vocab": 512, "model.visual_vocab": NUM_CODES} | overrides
    return config_loading.load(f"configs/recipes/{name}.py:smoke", overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):  # noqa: F811
    """Train the smoke variant of a recipe; return its config, parameters and losses. What differs in generation alone shares a run."""
    folder, runs = tmp_path_factory.mktemp("recipes"), {}

    @functools.cache
    def tokens(grid, streams):
        return write_tokens(folder / f"tokens {grid} {streams}", grid=grid, streams=streams)

    def of(name):
        config = recipe(
            name,
            **{
                "data.path": str(tokens(recipe(name).sequence.grid, recipe(name).sequence.streams)),
                "train.num_samples": 0,
                "train.eval_every": 0,
            },
            **{"optimizer.name": "sgd", "optimizer.ema_decay": 0.0},  # compiles fastest
        )
        trained = dataclasses.replace(config, name="")
        if (
            config.corruption.kernel.name == "mask"
        ):  # others have samplers of their own, which the config is checked with
            trained = dataclasses.replace(trained, generate=recipe("lumos1").generate)
        if trained not in runs:
            workdir = folder / name
            train(trained, workdir)
            checkpointer = Checkpointer(workdir, read_only=True)
            abstract = make_objective(config).definition.abstract
            place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)
            params = checkpointer.restore_params(abstract, checkpointer.latest_step())
            checkpointer.close()
            runs[trained] = params, [line["loss"] for line in metrics_writer.read(workdir, "train")]
        return config, *runs[trained]

    return of


def generate(config, params, num_given=0, num_frames=3):
    """Generate two clips of one prompt with seeds 3 and 4; return the given and the generated codes."""
    grid = (num_frames, *config.sequence.grid[1:])
    engine = make_engine(config, make_objective(config).definition, grid=grid)
    given = np.random.default_rng(0).integers(0, NUM_CODES, (2, *grid)).astype(np.int32)
    text = np.full((2, config.sequence.text_length), 7, np.int32)
    streams = tuple(np.zeros((2, num_frames, num), np.int32) for _, num in config.sequence.streams)
    program = jax.jit(
        lambda params, given, keys: engine.decode(
            params, text, jnp.array([3, 3]), given, keys, num_given, streams=streams
        )
    )
    return given, np.asarray(program(params, given, row_keys(3, 2)))


# Those that share their members with another one are slow.
@pytest.mark.fast(
    "lumos1", "acdit", "ar_diffusion", "art_v", "axial", "far", "g3pt", "genie", "hitvideo", "maskgit", "nar", "nova", "par", "sana_video",
    "starflow_v", "ursa", "rolling_forcing", "streaming_t2v", "view_stitching", "yume", "long_live",
)  # fmt: skip
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_parts_of_every_recipe_fit_together(name):
    """The shapes of a training step and of generation; `test_every_recipe_trains_and_generates` computes them."""
    config = recipe(name)
    objective = make_objective(config)
    params, extra = objective.definition.abstract, objective.extra_state()
    batch = tiny.token_batch(config)
    loss = jax.eval_shape(objective.loss, params, batch, jax.random.key(0), 0, extra and extra.abstract)
    assert loss.sum.shape == loss.weight.shape == () and jax.tree.structure(loss.extra) == jax.tree.structure(
        extra and extra.abstract
    )
    engine = make_engine(config, objective.definition)
    arguments = params, batch["text"], batch["text_length"], batch["tokens"], row_keys(0, len(batch["tokens"]))
    streams = tuple(batch[f"stream_{i}"] for i in range(len(config.sequence.streams)))
    codes = jax.eval_shape(functools.partial(engine.decode, num_given=0, streams=streams), *arguments)
    assert codes.shape == (len(batch["tokens"]), *config.sequence.grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_recipe_trains_and_generates(name, run):
    config, params, losses = run(name)
    assert len(losses) == config.train.num_steps and np.isfinite(losses).all()
    trained, endless = config.sequence.grid[0], config.generate.cache.bounded
    num_frames = 2 * trained if endless else trained
    given, codes = generate(config, params, num_frames=num_frames, num_given=1 if endless else 0)
    np.testing.assert_array_equal(codes[:, :endless], given[:, :endless])
    assert codes.shape == (2, num_frames, *config.sequence.grid[1:]) and codes.min() >= 0 and codes.max() < NUM_CODES
    assert (codes[0, -1:] != codes[1, -1:]).mean() > 0.5  # two seeds


@pytest.mark.fast("lumos1")
@pytest.mark.parametrize("name", ["lumos1", "next_token"])
def test_given_frames_are_kept(name, run):
    config, params, _ = run(name)
    given, codes = generate(config, params, num_given=1)
    np.testing.assert_array_equal(codes[:, 0], given[:, 0])
    assert (codes[:, 1:] != given[:, 1:]).mean() > 0.5


# Laws ---------------------------------------------------------------------------------------------------------------


def parts(name):
    """Return the config of a recipe, its layout and who sees whom, bool [L, L]."""
    config = recipe(name)
    layout = make_layout(config)
    return config, layout, visible(config.sequence.attention, layout.tokens, layout.tokens)


def draw(config, batch=4096, num_frames=3):
    drawn = config.corruption.draw(jax.random.key(0), batch, num_frames, 16)
    return np.asarray(drawn.mask_BTC), np.asarray(drawn.ratio_BT)


def test_lumos1_hides_one_tube_in_training_and_its_share_in_generation():
    config = recipe("lumos1")
    mask_BTC, ratio_BT = draw(config)
    assert (mask_BTC == mask_BTC[:, :1]).all() and ratio_BT.min() == np.float32(0.7)
    assert history_mask(16, config.generate.history_ratio).sum() == mask_BTC.sum(-1).min() == round(0.7 * 16)


def test_next_token_predicts_from_the_code_before_and_sees_no_later_one():
    config, layout, sees_LL = parts("next_token")
    source, target = config.sequence.targets(layout)
    np.testing.assert_array_equal(target, layout.prefix_length + np.arange(48))
    np.testing.assert_array_equal(source[:, 0], target - 1)
    np.testing.assert_array_equal(sees_LL, np.tri(layout.length, dtype=bool))


def test_nbp_predicts_the_same_place_of_the_next_row():
    config, layout, sees_LL = parts("nbp")
    source, target = config.sequence.targets(layout)
    place = lambda index: np.stack([layout.tokens.t[index] * 4 + layout.tokens.y[index], layout.tokens.x[index]])
    np.testing.assert_array_equal(place(source[8:, 0]), place(target[8:]) - [[1], [0]])
    np.testing.assert_array_equal(source[:4, 0], target[:4] - 1)  # the first row, code by code
    # The second one from the last code of the first row, and start tokens in the places of the others.
    assert source[4, 0] == target[3]
    assert (layout.tokens.kind[source[5:8, 0]] == START).all()
    np.testing.assert_array_equal(layout.tokens.x[source[5:8, 0]], layout.tokens.x[target[5:8]])
    assert len(layout.groups) == 4 + 11
    assert all(sees_LL[np.ix_(row, row)].all() for row in layout.groups)


def test_nar_has_a_stage_for_each_plane_and_a_head_for_each_axis():
    config, layout, _ = parts("nar")
    source, target = config.sequence.targets(layout)
    assert len(layout.groups) == 3 + 4 + 4 - 2
    for head, axis in enumerate((layout.tokens.x, layout.tokens.y, layout.tokens.t)):
        reached = axis[target] > 0
        np.testing.assert_array_equal(axis[source[reached, head]], axis[target[reached]] - 1)
        assert (source[~reached, head][1:] == -1).all()  # of the first code the start token is the source


def test_maskgit_is_one_stage_in_which_cells_see_everything():
    config, layout, sees_LL = parts("maskgit")
    is_cell = layout.tokens.kind == CODE
    assert len(layout.groups) == 1 and sees_LL[is_cell].all()
    np.testing.assert_array_equal(sees_LL[~is_cell], np.broadcast_to(~is_cell, (layout.num_text, layout.length)))
    mask_BTC, ratio_BT = draw(config)
    np.testing.assert_array_equal(mask_BTC.sum((1, 2)), np.maximum(1, np.round(48 * ratio_BT[:, 0])))


def test_diffusion_forcing_draws_every_frame_for_itself():
    mask_BTC, ratio_BT = draw(recipe("diffusion_forcing"))
    assert np.abs(np.corrcoef(ratio_BT.T) - np.eye(3)).max() < 4 / np.sqrt(len(ratio_BT))
    np.testing.assert_array_equal(mask_BTC.sum(-1), np.maximum(1, np.round(16 * ratio_BT)) * (ratio_BT > 0))
    both = (mask_BTC[:, 0] & mask_BTC[:, 1]).mean()
    assert abs(both - 0.25) < 0.02  # masks do not know of each other either


@pytest.mark.parametrize("lag, iterations", [(0, 6), (1, 8), (2, 10), (6, 18)])
def test_ar_diffusion_never_knows_less_of_an_earlier_frame(lag, iterations):
    config = recipe("ar_diffusion", **{"generate.plan.passes": lag})
    assert np.diff(draw(config)[1], axis=1).min() >= 0
    plan = config.generate.plan
    assert plan.num_iterations(6, 3) == iterations == 6 + 2 * lag
    first, later = plan.rounds(6, 3)
    assert all((np.diff(passes[passes >= 0]) == -lag).all() for passes in (*first, *later))


def test_acdit_sees_clean_earlier_frames_and_nothing_of_its_targets():
    config, layout, sees_LL = parts("acdit")
    clean, noisy, t = layout.clean_index, layout.visual_index, np.repeat(np.arange(3), 16)
    assert layout.length == layout.num_text + 2 * 48
    np.testing.assert_array_equal(sees_LL[np.ix_(noisy, clean)], t[:, None] > t)
    np.testing.assert_array_equal(sees_LL[np.ix_(noisy, noisy)], t[:, None] == t)
    np.testing.assert_array_equal(sees_LL[np.ix_(clean, clean)], t[:, None] >= t)
    assert not sees_LL[np.ix_(clean, noisy)].any() and sees_LL[np.ix_(noisy, np.arange(layout.num_text))].all()
    for axis in layout.positions:
        np.testing.assert_array_equal(axis[clean], axis[noisy])
    weight, count = config.loss.weights(np.array([[True, False]]), np.array([[0.25, 0.25]]))
    assert weight.tolist() == [[4, 0]] and count.tolist() == [[1, 1]]


def test_vid_gpt_trains_on_clean_prefixes_and_keeps_as_many_frames():
    config = recipe("vid_gpt")
    _, ratio_BT = draw(config)
    length_B = (ratio_BT == 0).sum(1)
    assert set(length_B) == {1, 2}
    for ratio_T, length in zip(ratio_BT, length_B):
        assert (ratio_T[:length] == 0).all() and len(set(ratio_T[length:])) == 1
    frames = jnp.arange(60)
    np.testing.assert_array_equal(np.flatnonzero(config.generate.cache.sees(frames[:50], 50)), [48, 49])


def places(config, now):
    """Return which frames are seen when frame `now` is generated, and the times of these and of the frame."""
    cache, frames = config.generate.cache, np.arange(50)
    seen = np.asarray(cache.sees(np.where(frames < now, frames, EMPTY), now)) | (frames == now)
    in_sink = frames < cache.num_sink
    oldest = frames[seen & (~in_sink | (frames == now))].min()
    time = config.generate.positions(
        jnp.asarray(frames), now, jnp.asarray(in_sink), config.generate.cache.num_sink, oldest
    )
    return frames[seen], np.asarray(time)[seen]


def test_ca2_vdm_gives_every_frame_that_is_seen_a_trained_place_of_its_own():
    config = recipe("ca2_vdm")
    for now in range(40):
        _, time = places(config, now)
        assert len(set(time)) == len(time) == min(now, 2) + 1 and 0 <= time.min() <= time.max() < 3


def test_infinity_rope_keeps_the_first_frame_and_times_inside_the_trained_range():
    config = recipe("infinity_rope")
    for now in range(40):
        seen, time = places(config, now)
        assert seen.tolist() == sorted({0, max(now - 1, 0), now})  # the sink, the newest, and itself
        assert time.min() == 0 and time.max() == min(now, 2)
        np.testing.assert_array_equal(np.diff(time[1:]), np.diff(seen[1:]))


def test_par_generates_the_same_place_of_all_regions_and_one_region_is_next_token():
    config, layout, _ = parts("par")
    assert len(layout.groups) == 4 + (48 - 4) // 4
    region = lambda index: layout.tokens.y[index] // 2 * 2 + layout.tokens.x[index] // 2
    source, target = config.sequence.targets(layout)
    for group in layout.groups[4:]:
        assert sorted(region(group)) == [0, 1, 2, 3]
    follows = layout.tokens.kind[source[:, 0]] == CODE
    after = follows & (layout.tokens.group[target] > 4)
    np.testing.assert_array_equal(region(source[after, 0]), region(target[after]))
    one, plain = (
        recipe(name, **changes)
        for name, changes in (("par", {"sequence.layout.rows": 1, "sequence.layout.columns": 1}), ("next_token", {}))
    )
    tables = [make_layout(c) for c in (one, plain)]
    jax.tree.map(np.testing.assert_array_equal, *(table.tokens for table in tables))
    jax.tree.map(np.testing.assert_array_equal, *(c.sequence.targets(table) for c, table in zip((one, plain), tables)))
    for grid, regions, passes in (((5, 16, 16), 2, 323), ((5, 16, 16), 4, 95), ((1, 16, 16), 2, 67)):  # as published
        stages = dataclasses.replace(config.sequence.layout, rows=regions, columns=regions).stages(grid)
        assert stages.max() + 1 == passes


def test_axial_layers_see_the_three_lines_through_a_cell():
    config = recipe("axial")
    layout = make_layout(config)
    t, y, x = np.indices((3, 4, 4)).reshape(3, -1)
    same = lambda a: a[:, None] == a
    lines = same(y) & same(x) & (t[:, None] >= t), same(t) & same(x), same(t) & same(y)
    for rule, line in zip(config.sequence.attention.layers(), lines, strict=True):
        sees_LL = visible(rule, layout.tokens, layout.tokens)
        np.testing.assert_array_equal(sees_LL[np.ix_(layout.visual_index, layout.visual_index)], line)
    assert config.model.num_layers % 3 == 0


def test_genie_attends_in_space_and_time_and_sees_some_wrong_codes():
    config = recipe("genie")
    assert [rule.name for rule in config.sequence.attention.layers()] == ["local", "axial"]
    _, ratio_BT = draw(config)
    assert (ratio_BT[:, 0] == 0).all() and np.diff(ratio_BT, axis=1).min() >= 0
    codes = np.zeros((4096, 48), int)
    seen = config.corruption.errors(jax.random.key(0), codes, NUM_CODES, 0, {}, None)
    rate_B = (np.asarray(seen) != codes).mean(1)
    assert abs(rate_B.mean() - 0.1 * (1 - 1 / NUM_CODES)) < 0.003


def test_nova_hides_most_of_each_frame_and_draws_points():
    config = recipe("nova")
    mask_BTC, ratio_BT = draw(config)
    assert ratio_BT.min() >= 0.7 and np.abs(np.corrcoef(ratio_BT.T) - np.eye(3)).max() < 4 / np.sqrt(len(ratio_BT))
    assert config.model.head.name == "flow" and not config.generate.sampler.reads_log_p


def test_art_v_sees_the_first_frame_and_the_one_before():
    config, layout, sees_LL = parts("art_v")
    clean, noisy, t = layout.clean_index, layout.visual_index, np.repeat(np.arange(3), 16)
    late = t == 2
    np.testing.assert_array_equal(sees_LL[np.ix_(noisy[late], clean)].any(0), (t == 0) | (t == 1))
    frames = jnp.arange(9)
    np.testing.assert_array_equal(np.flatnonzero(config.generate.cache.sees(frames, 9)), [0, 8])
    assert config.model.head.reach == 1 and config.corruption.errors.clean == 0.5


def test_hitvideo_generates_coarse_layers_before_fine_ones():
    config, layout, sees_LL = parts("hitvideo")
    assert [len(group) for group in layout.groups] == [4, 16] * 3  # 2 x 2 areas of 1 coarse and 4 fine codes
    coarse, fine = layout.tokens.x[layout.groups[0]] % 5, layout.tokens.x[layout.groups[1]] % 5
    assert set(coarse) == {0} and set(fine) == {1, 2, 3, 4}
    noisy = layout.visual_index[
        np.isin(layout.tokens.x[layout.visual_index] % 5, (1, 2, 3, 4)) & (layout.tokens.t[layout.visual_index] == 0)
    ]
    assert sees_LL[np.ix_(noisy, layout.groups[0])].all() and not sees_LL[np.ix_(noisy, layout.groups[1])].any()


def test_larp_is_next_token_over_one_row():
    config, layout, sees_LL = parts("larp")
    np.testing.assert_array_equal(sees_LL, np.tri(layout.length, dtype=bool))
    np.testing.assert_array_equal(layout.positions.text, np.arange(layout.length))
    assert config.model.rope == "1d" and len(layout.groups) == 48


def test_g3pt_makes_a_scale_in_one_pass_from_all_coarser_ones():
    config, layout, sees_LL = parts("g3pt")
    assert [len(group) for group in layout.groups] == [1, 3, 12] * 3
    stage = layout.tokens.stage
    clean, noisy = layout.clean_index, layout.visual_index
    np.testing.assert_array_equal(sees_LL[np.ix_(noisy, clean)], stage[noisy][:, None] > stage[clean])
    mask_BTC, _ = draw(config, batch=2)
    assert mask_BTC.all() and config.generate.steps == 1


def test_mcvd_hides_past_and_future_each_in_half_of_the_clips():
    config = recipe("mcvd")
    drawn = config.corruption.draw(jax.random.key(0), 4096, 3, 16)
    hidden_BT = np.asarray(drawn.mask_BTC).all(-1)
    np.testing.assert_array_equal(drawn.predicted_BT, np.broadcast_to([False, True, False], (4096, 3)))
    for past, future in np.ndindex(2, 2):  # four tasks, as likely
        assert abs(np.mean((hidden_BT[:, 0] == past) & (hidden_BT[:, 2] == future)) - 0.25) < 0.03


def test_ursa_begins_with_random_codes_and_revises_all_of_them():
    config = recipe("ursa")
    sampler = config.generate.sampler
    assert not sampler.masks and config.corruption.kernel.name in sampler.kernels and config.loss.weights.name == "all"
    # A jump takes the drawn code with probability 1 / (passes that are left), whatever is known.
    np.testing.assert_allclose(sampler.temperatures(4, True), [1 / 4, 1 / 3, 1 / 2, 1])
    taken = sampler.taken(jax.random.gumbel(jax.random.key(0), (20_000,)), None, 0.25)
    assert abs(float(taken.mean()) - 0.25) < 0.01


# Documents ----------------------------------------------------------------------------------------------------------


def test_the_table_of_systems_is_up_to_date():
    page = REPO / "docs" / "systems.md"
    assert page.read_text() == recipes_docs.render(), "run: python -m lumos.recipes_docs > docs/systems.md"


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_every_recipe_says_what_it_is(system):
    assert re.search(r"\(arXiv \d{4}\.\d{5}\)", system.paper)
    assert tuple(system.sections) == recipes_docs.SECTIONS and all(system.sections.values())
    assert f"lumos train --config=configs/recipes/{system.name}.py" in system.sections["Run"]
    file, test = system.sections["Law"].split("::")
    assert f"def {test}(" in (REPO / file).read_text()


def test_an_unknown_recipe_is_answered_with_the_one_that_was_meant():
    with pytest.raises(UserError, match="did you mean .configs/recipes/nbp.py") as caught:
        config_loading.load("configs/recipes/npb.py")
    assert "\n" not in str(caught.value)
