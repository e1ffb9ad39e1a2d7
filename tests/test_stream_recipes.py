"""Recipes whose frames come with streams: what each says its method is, on the recipe as it ships."""

import jax
import numpy as np
from test_recipes import draw, parts, recipe

from lumos.layouts import make_layout
from lumos.sequence import frame_order
from lumos.sequence.rule import visible
from lumos.sequence.streams import StreamConfig
from lumos.sequence.tokens import STREAM


def frames_of(layout):
    """Return for cells and stream tokens their frames, and where they are."""
    cells = layout.visual_index
    streams = np.concatenate([index.reshape(-1) for index in layout.stream_index])
    return cells, layout.tokens.t[cells], streams, layout.tokens.t[streams]


def assert_frames_know_their_stream_and_no_later_one(name):
    config, layout, sees_LL = parts(name)
    cells, t_C, streams, t_S = frames_of(layout)
    np.testing.assert_array_equal(sees_LL[np.ix_(cells, streams)], t_C[:, None] >= t_S)
    assert not sees_LL[np.ix_(streams, cells)][t_S[:, None] <= t_C].any()  # they are given, whatever their frame shows
    return config, layout


def test_game_factory_has_a_window_of_actions_and_no_loss_on_clean_frames():
    config, _ = assert_frames_know_their_stream_and_no_later_one("game_factory")
    ((size, tokens),) = config.sequence.streams
    actions = np.arange(9) % 6
    rows_TR = StreamConfig(codes=size - 1, rows=tokens).encode(actions[:, None], 4)  # a latent frame of four
    assert rows_TR.tolist() == [[6] * 8, [6, 6, 6, 6, 1, 2, 3, 4], [1, 2, 3, 4, 5, 0, 1, 2]]
    mask_BTC, ratio_BT = draw(config)
    clean_BT = ratio_BT == 0
    weights_BJ, _ = config.loss.weights(mask_BTC.reshape(len(mask_BTC), -1), np.repeat(ratio_BT, 16, axis=1), True)
    assert clean_BT[:, 0].all() and not weights_BJ.reshape(mask_BTC.shape)[clean_BT].any()


def test_actions_of_ivideogpt_change_nothing_at_the_start():
    """`tests/test_injection.py` has the same of the hidden states: the map is zero."""
    config, _ = assert_frames_know_their_stream_and_no_later_one("ivideogpt")
    assert config.model.streams.name == "added" and not config.model.streams.in_sequence
    weight = config.model.streams.build(config.model, config.sequence.streams[0][1], None)
    assert weight.shape == (4 * config.model.model_dim, config.model.model_dim) and not np.asarray(weight[...]).any()


def test_gendop_reads_poses_back_within_half_a_bin():
    config, layout, sees_LL = parts("gendop")
    np.testing.assert_array_equal(sees_LL, np.tri(layout.length, dtype=bool))  # ten numbers a pose, one after the other
    assert layout.grid[1:] == (1, 10)
    camera = StreamConfig(name="camera", codes=256, low=-2.0, high=2.0)
    values = np.random.default_rng(0).uniform(-2, 2, (1000, 10))
    np.testing.assert_array_less(np.abs(camera.values(camera.quantize(values)) - values), 4 / 256 / 2 + 1e-6)
    codes = np.arange(256)
    np.testing.assert_array_equal(camera.quantize(camera.values(codes)), codes)
    assert camera.quantize(np.array([-9.0, 9.0])).tolist() == [0, 255]


def test_teller_hears_its_chunk_and_those_before():
    config, layout = assert_frames_know_their_stream_and_no_later_one("teller")
    _, ratio_BT = draw(config)
    assert np.abs(np.corrcoef(ratio_BT.T) - np.eye(3)).max() < 4 / np.sqrt(
        len(ratio_BT)
    )  # X-Actor: levels of their own
    assert config.generate.cache.bounded and layout.stream_index[0].shape == (3, 5)


def test_vmas_generates_sound_from_frames():
    config, layout = assert_frames_know_their_stream_and_no_later_one("vmas")
    video = make_layout(recipe("lumos1"))
    assert layout.stream_index[0].shape == (3, video.grid[1] * video.grid[2]) and layout.grid == (3, 1, 8)


def test_x_dancer_has_a_code_for_each_part_of_the_body():
    config, layout = assert_frames_know_their_stream_and_no_later_one("x_dancer")
    assert layout.grid[1:] == (1, 5) and [len(group) for group in layout.groups] == [5 + 2] * 3  # with the music
    assert set(layout.tokens.x[layout.visual_index]) == set(range(5))


def test_dawn_makes_all_frames_at_once_and_sees_the_sound_of_all():
    _, layout, sees_LL = parts("dawn")
    cells, _, streams, _ = frames_of(layout)
    assert len(layout.groups) == 1 and sees_LL[np.ix_(cells, np.concatenate([cells, streams]))].all()
    assert [index.shape for index in layout.stream_index] == [(3, 4), (3, 1)]


def test_longvie_has_dense_and_sparse_controls_and_equal_noise():
    config, layout = assert_frames_know_their_stream_and_no_later_one("longvie")
    assert [index.shape for index in layout.stream_index] == [(3, 16), (3, 16)]
    assert config.sequence.streams[0][0] == 1001 and 0 < config.corruption.stream_drop < 1
    noise, groups = config.generate.noise, np.arange(9)
    np.testing.assert_array_equal(np.asarray(noise(groups, 1))[3:6], np.asarray(noise(groups, 1))[:3])


def test_yan_has_the_structure_of_each_frame_before_it():
    _, layout = assert_frames_know_their_stream_and_no_later_one("yan")
    (structure,) = layout.stream_index
    assert structure.shape == layout.content_index.shape  # a token for every cell
    kinds = layout.tokens.kind[layout.prefix_length :]
    np.testing.assert_array_equal(kinds == STREAM, np.tile(np.repeat([True, False], 16), 3))
    for axis in ("t", "h", "w"):  # and where the cell is, so that a cell finds its own
        place = getattr(layout.positions, axis)
        np.testing.assert_array_equal(place[structure], place[layout.content_index])


def test_voyager_has_depth_below_colour_in_one_group():
    config, layout, sees_LL = parts("voyager")
    plain = recipe("diffusion_forcing").sequence.grid
    assert layout.grid == (plain[0], 2 * plain[1], plain[2]) and len(layout.groups) == plain[0]
    for group in layout.groups:
        is_depth = layout.tokens.y[group] >= plain[1]
        assert is_depth.sum() == len(group) / 2 and sees_LL[np.ix_(group, group)].all()


def test_viton_dit_makes_key_frames_before_gaps_with_their_poses():
    config = recipe("viton_dit", **{"sequence.order": "time", "sequence.layout": "ranks"})
    layout = make_layout(config)
    sees_LL = visible(config.sequence.attention, layout.tokens, layout.tokens)
    assert [set(layout.tokens.t[group]) for group in layout.groups] == [{0}, {2}, {1}]  # both ends, then the gap
    _, _, streams, t_S = frames_of(layout)
    gap = layout.content_index[1]
    assert sees_LL[np.ix_(gap, layout.visual_index)].all()
    assert all(np.isin(streams[t_S == t], group).all() for t, group in zip((0, 2, 1), layout.groups))
    tokens, key = np.arange(2 * 3).reshape(2, 3, 1, 1), jax.random.key(0)
    drawn = frame_order.reorder(recipe("viton_dit").sequence.order, key, {"tokens": tokens, "stream_0": tokens[..., 0]})
    np.testing.assert_array_equal(drawn["tokens"][..., 0], drawn["stream_0"])  # poses go with their frames


def test_vf_prompt_has_an_example_without_loss_that_all_see():
    config, layout, sees_LL = parts("vf_prompt")
    drawn = config.corruption.draw(jax.random.key(0), 64, 3, 16)
    assert not np.asarray(drawn.mask_BTC)[:, 0].any() and not np.asarray(drawn.predicted_BT)[:, 0].any()
    assert np.asarray(drawn.predicted_BT)[:, 1:].all()
    assert sees_LL[np.ix_(layout.visual_index, layout.content_index[0])].all()


def test_style_in_v_makes_any_frame_from_the_anchor():
    config = recipe("style_in_v")
    _, ratio_BT = draw(config)
    assert (ratio_BT[:, 0] == 0).all()
    order_BT = np.asarray(config.sequence.order(jax.random.key(0), 512, 3))
    assert (order_BT[:, 0] == 0).all() and 0.4 < (order_BT[:, 1] == 2).mean() < 0.6
    layout = make_layout(config)
    times = np.asarray(frame_order.positions(layout, np.array([[0, 2, 1]])).t)[0]
    in_time = np.asarray(layout.positions.t)
    np.testing.assert_array_equal(times[layout.content_index[1]], in_time[layout.content_index[2]])


def test_speaker_vid_hears_two_people():
    _, layout = assert_frames_know_their_stream_and_no_later_one("speaker_vid")
    first, second = layout.stream_index
    assert first.shape == second.shape == (3, 5) and not set(first.reshape(-1)) & set(second.reshape(-1))
    assert set(layout.tokens.y[first].reshape(-1)) != set(
        layout.tokens.y[second].reshape(-1)
    )  # told apart by their place
