"""The moving_shapes data set: scenes, captions, splits, drawing, the TFDS folder and the checker."""

import dataclasses
import itertools
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from lumos.config import ShapesConfig
from lumos.data import moving_shapes
from lumos.data.shapes_caption import Prompt, write_caption
from lumos.data.shapes_render import background_FYXC, coverage_FYX, render
from lumos.data.shapes_scene import COLOURS, DIRECTIONS, LEVELS, SHAPES, SPLITS, combinations, sample_scene
from lumos.errors import UserError

CLIP = (9, 64, 64)
ATTRIBUTES = ("colour", "shape", "direction")


def degrade(video_FYXC, blur=1.35, noise=8.0, desaturation=0.15, seed=0):
    """What a weak tokenizer does to a clip; blur in pixels at 64 rows."""
    x = video_FYXC.astype(np.float32)
    x = x + desaturation * (x.mean(axis=-1, keepdims=True) - x)
    sigma = blur * video_FYXC.shape[1] / 64
    x = ndimage.gaussian_filter(x, (0, sigma, sigma, 0)) + np.random.default_rng(seed).normal(0, noise, x.shape)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def accuracy(level, change=lambda video: video, num=60, clip_shape=CLIP):
    clips = [moving_shapes.make_clip(level, clip_shape, 1, "train", index) for index in range(num)]
    readings = [moving_shapes.read(change(clip["video"])) for clip in clips]
    return {a: np.mean([getattr(r, a) == clip[a] for r, clip in zip(readings, clips)]) for a in ATTRIBUTES}


# Scenes and splits.


@pytest.mark.parametrize("level", LEVELS)
def test_clip_is_a_pure_function_of_its_arguments(level):
    clip = moving_shapes.make_clip(level, CLIP, 3, "test", 5)
    again = moving_shapes.make_clip(level, CLIP, 3, "test", 5)
    assert clip.keys() == again.keys()
    assert all(np.array_equal(clip[name], again[name]) for name in clip)
    for other in ((4, "test", 5), (3, "validation", 5), (3, "test", 6)):
        assert not np.array_equal(clip["video"], moving_shapes.make_clip(level, CLIP, *other)["video"])


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_combination_but_train_has_every_pair(level):
    sets = {split: set(combinations(level, split)) for split in SPLITS}
    motions = LEVELS[level].motions
    total = len(COLOURS) * len(SHAPES) * len(motions)
    assert sum(map(len, sets.values())) == len(set().union(*sets.values())) == total
    share = {split: len(members) / total for split, members in sets.items()}
    assert share["train"] == 0.75 and 0.09 < share["validation"] < 0.12 and 0.13 < share["test"] < 0.16
    values = (tuple(COLOURS), SHAPES, motions)
    train = [dataclasses.astuple(c) for c in sets["train"]]
    for a, b in itertools.combinations(range(3), 2):
        assert {(t[a], t[b]) for t in train} == set(itertools.product(values[a], values[b]))


def test_easy_split_is_that_of_the_harder_levels():
    for split in SPLITS:
        assert set(combinations("easy", split)) <= set(combinations("hard", split))
        assert combinations("medium", split) == combinations("hard", split)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_object_of_a_scene_belongs_to_the_split(level, split):
    allowed = {dataclasses.astuple(c) for c in combinations(level, split)}
    least, most = LEVELS[level].num_objects
    for index in range(40):
        objects = sample_scene(level, CLIP, 0, split, index).objects
        assert {(o.colour, o.shape, o.direction) for o in objects} <= allowed
        assert least <= len(objects) <= most
        assert len({o.colour for o in objects}) == len(objects)


@pytest.mark.parametrize("level", LEVELS)
def test_each_pass_over_the_combinations_shows_each_once(level):
    members = combinations(level, "test")
    for block in range(2):
        mains = [sample_scene(level, CLIP, 0, "test", block * len(members) + i).main for i in range(len(members))]
        assert {(m.colour, m.shape, m.direction) for m in mains} == {dataclasses.astuple(c) for c in members}


@pytest.mark.parametrize("clip_shape", [(9, 64, 64), (17, 32, 48), (65, 64, 64)])
@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_paths_stay_in_the_frame_and_follow_their_direction(level, clip_shape):
    frames, height, width = clip_shape
    for index in range(30):
        for item in sample_scene(level, clip_shape, 0, "train", index).objects:
            high_2 = np.array([width, height]) - item.radius
            assert np.all(item.centre_F2 > item.radius) and np.all(item.centre_F2 < high_2)
            step_F2 = np.diff(item.centre_F2, axis=0)
            unit_F2 = step_F2 / np.linalg.norm(step_F2, axis=1, keepdims=True)
            forward_F = unit_F2 @ DIRECTIONS[item.direction] > 0.999
            assert forward_F[: int(0.7 * (frames - 1))].all()
            assert forward_F.all() != item.bounces


def test_easy_motion_is_visible_and_speed_scales_with_the_frame():
    for side in (64, 128):
        for index in range(20):
            main = sample_scene("easy", (9, side, side), 0, "train", index).main
            step = np.linalg.norm(np.diff(main.centre_F2, axis=0), axis=1)
            assert np.all(step > 1.5 * side / 64) and np.all(step < 2.5 * side / 64)
            assert 0.4 * side <= 2 * main.radius <= 0.5 * side


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("simple", CLIP, 0, "train", 0), "'simple'; allowed: easy, endless, medium, hard"),
        (("easy", CLIP, 0, "eval", 0), "'eval'; allowed: train, validation, test"),
        (("easy", (1, 64, 64), 0, "train", 0), "frames >= 2"),
        (("easy", (9, 16, 64), 0, "train", 0), "height >= 32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        moving_shapes.make_clip(*arguments)


# Captions and prompts.


def direction_in_words(text):
    vertical = "up" if re.search(r"\bup", text) else "down" if re.search(r"\b(down|lower)", text) else ""
    horizontal = "right" if re.search(r"right\b", text) else "left" if re.search(r"left\b", text) else ""
    return "-".join(filter(None, (vertical, horizontal)))


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_captions_name_every_object_truly(level):
    for index in range(150):
        scene = sample_scene(level, CLIP, 0, "train", index)
        caption = write_caption(scene, 0, "train", index)
        colour = re.compile(rf"\b(?:{'|'.join(COLOURS)})\b")  # "checkered" is none
        assert colour.findall(caption) == [o.colour for o in scene.objects]
        assert re.findall("|".join(SHAPES), caption) == [o.shape for o in scene.objects]
        clauses = colour.split(caption.split(", the camera")[0])[1:]
        assert [direction_in_words(clause) for clause in clauses] == [o.direction for o in scene.objects]
        assert caption.count("off the edge") == sum(o.bounces for o in scene.objects)
        if re.search("behind|in front of", caption):
            assert scene.occlusion
        if level == "easy":
            assert len(caption.split()) <= 12


def test_captions_vary():
    captions = {write_caption(sample_scene("easy", CLIP, 0, "train", 0), seed, "train", 0) for seed in range(50)}
    assert len(captions) > 20


def test_prompts_are_unseen_balanced_and_as_many_as_asked():
    prompts = moving_shapes.test_prompts("easy", 28, seed=7)
    seen = {dataclasses.astuple(c) for c in combinations("easy", "train") + combinations("easy", "validation")}
    assert not seen & {(p.colour, p.shape, p.direction) for p in prompts}
    assert len(prompts) == 28
    for attribute in ATTRIBUTES:
        counts = Counter(getattr(p, attribute) for p in prompts).values()
        assert max(counts) - min(counts) <= 2
    first = Counter(p.colour for p in prompts[:6])
    assert len(first) == len(COLOURS)
    assert prompts == moving_shapes.test_prompts("easy", 28, seed=7)
    clip = moving_shapes.make_clip("easy", (17, 64, 64), 7, "test", 3)
    assert prompts[3] == Prompt(clip["caption"], clip["colour"], clip["shape"], clip["direction"])


# Drawing.


@pytest.mark.parametrize(
    "shape, area",  # of radius 1
    [("circle", np.pi), ("square", 1.76**2), ("triangle", 2.24 * 1.94 / 2), ("cross", 8 * 1.02 * 0.38 - 4 * 0.38**2)],
)
def test_shapes_cover_their_area_at_any_subpixel_offset(shape, area):
    for offset in (0.0, 0.3, 0.5):
        axis_FX = np.arange(-31.5, 32, dtype=np.float32)[None] + np.float32(offset)
        alpha_FYX = coverage_FYX(shape, 14.0, axis_FX, axis_FX)
        assert alpha_FYX.shape == (1, 64, 64) and alpha_FYX.min() == 0 and alpha_FYX.max() == 1
        assert alpha_FYX.sum() == pytest.approx(area * 14**2, rel=0.02)


def test_camera_motion_shifts_the_background():
    scene = sample_scene("hard", CLIP, 0, "train", 0)
    background = dataclasses.replace(scene.background, camera_2=np.array([2.0, 1.0]))
    frames_FYXC = background_FYXC(background, CLIP)
    np.testing.assert_allclose(frames_FYXC[1, :-1, :-2], frames_FYXC[0, 1:, 2:], atol=1e-2)
    still_FYXC = background_FYXC(dataclasses.replace(background, camera_2=np.zeros(2)), CLIP)
    np.testing.assert_allclose(still_FYXC, frames_FYXC[:1], atol=1e-4)


def test_nearer_objects_are_drawn_over_farther_ones():
    scene = next(s for i in range(99) if len((s := sample_scene("medium", CLIP, 0, "train", i)).objects) == 2)
    main, other = (dataclasses.replace(o, centre_F2=np.full((9, 2), 32.0)) for o in scene.objects)
    for depth, front in (((1, 0), main), ((0, 1), other)):
        video_FYXC = render(dataclasses.replace(scene, objects=(main, other), depth=depth))
        assert tuple(video_FYXC[0, 32, 32]) == COLOURS[front.colour]


# The checker.


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_checker_reads_ground_truth(level):
    assert min(accuracy(level).values()) >= 0.99


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_checker_reads_degraded_clips(level):
    assert min(accuracy(level, degrade).values()) >= 0.97


@pytest.mark.parametrize("clip_shape", [(17, 64, 64), (9, 32, 32), (9, 96, 128)])
def test_checker_reads_other_sizes(clip_shape):
    assert min(accuracy("easy", num=20, clip_shape=clip_shape).values()) == 1


def test_score_rejects_every_other_value():
    choices = dict(zip(ATTRIBUTES, (COLOURS, SHAPES, DIRECTIONS)))
    for index in range(6):
        clip = moving_shapes.make_clip("easy", CLIP, 0, "test", index)
        truth = Prompt(clip["caption"], clip["colour"], clip["shape"], clip["direction"])
        assert moving_shapes.score(clip["video"], truth) == dict.fromkeys(ATTRIBUTES, True)
        for attribute, values in choices.items():
            for value in set(values) - {clip[attribute]}:
                wanted = dataclasses.replace(truth, **{attribute: value})
                assert moving_shapes.score(clip["video"], wanted) == {a: a != attribute for a in ATTRIBUTES}


def test_checker_follows_changes_of_the_pixels():
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}
    # Swapping the red and blue channels maps the palette onto itself.
    swapped = {"red": "blue", "blue": "red", "yellow": "cyan", "cyan": "yellow", "green": "green", "magenta": "magenta"}
    for index in range(24):
        clip = moving_shapes.make_clip("easy", CLIP, 0, "train", index)
        assert moving_shapes.read(clip["video"][::-1]).direction == opposite[clip["direction"]]
        assert moving_shapes.read(clip["video"][..., ::-1]).colour == swapped[clip["colour"]]
        mirrored = moving_shapes.read(clip["video"][:, :, ::-1])
        horizontal = clip["direction"] in ("left", "right")
        assert mirrored.direction == (opposite[clip["direction"]] if horizontal else clip["direction"])
        assert mirrored.shape == clip["shape"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_static_object_has_no_direction(level):
    for index in range(10):
        clip = moving_shapes.make_clip(level, CLIP, 0, "test", index)
        still = np.repeat(clip["video"][4:5], 9, axis=0)
        for video in (still, degrade(still)):
            assert moving_shapes.read(video).direction == "none"


def test_bad_frames_do_not_change_the_reading():
    for index in range(20):
        clip = moving_shapes.make_clip("easy", CLIP, 0, "train", index)
        video = clip["video"].copy()
        video[2] = 128
        video[6] = np.roll(video[6], 20, axis=(index % 2))
        reading = moving_shapes.read(video)
        assert [getattr(reading, a) for a in ATTRIBUTES] == [clip[a] for a in ATTRIBUTES]


def test_nothing_reads_as_none():
    rng = np.random.default_rng(0)
    empty = background_FYXC(sample_scene("hard", CLIP, 0, "train", 0).background, CLIP).clip(0, 255)
    videos = {
        "noise": rng.integers(0, 256, (*CLIP, 3)),
        "grey noise": rng.normal(128, 20, (*CLIP, 1)).repeat(3, axis=-1),
        "black": np.zeros((*CLIP, 3)),
        "all red": np.broadcast_to(COLOURS["red"], (*CLIP, 3)),
        "background": np.broadcast_to(empty, (*CLIP, 3)),
    }
    for name, video in videos.items():
        reading = moving_shapes.read(video.clip(0, 255).astype(np.uint8))
        assert (reading.colour, reading.shape, reading.direction) == ("none",) * 3, name
        assert np.isnan(reading.centre_F2).all()


def test_reading_gives_place_and_speed_in_frame_units():
    scene = sample_scene("easy", CLIP, 0, "train", 0)
    reading = moving_shapes.read(render(scene))
    assert scene.main.shape == "circle"  # whose centroid is its centre
    np.testing.assert_allclose(reading.centre_F2, scene.main.centre_F2, atol=0.3)
    step = np.linalg.norm(scene.main.centre_F2[1] - scene.main.centre_F2[0])
    assert reading.speed == pytest.approx(step / 64, rel=0.03)


def test_checker_refuses_floats():
    with pytest.raises(ValueError, match="uint8"):
        moving_shapes.read(np.zeros((*CLIP, 3), np.float32))


# The prepared folder.

SMALL = ShapesConfig(level="hard", num_train=6, num_validation=2, num_test=3)


def test_folder_holds_what_the_generator_makes(tmp_path, capsys):
    folder = moving_shapes.prepare(tmp_path, SMALL, (9, 32, 48), 5)
    assert folder.is_relative_to(tmp_path)
    for path in (tmp_path, folder):
        for split, count in {"train": 6, "validation": 2, "test": 3}.items():
            clips = moving_shapes.open_split(path, split)
            assert len(clips) == count
            for index in range(count):
                wanted = moving_shapes.make_clip("hard", (9, 32, 48), 5, split, index)
                clip = clips[index]
                np.testing.assert_array_equal(clip.pop("video"), wanted.pop("video"))
                assert clip == wanted
    assert pickle.loads(pickle.dumps(clips))[2]["id"] == "test-000002"
    assert capsys.readouterr() == ("", "")


def test_prepare_keeps_a_finished_folder_and_refuses_other_settings(tmp_path, monkeypatch):
    folder = moving_shapes.prepare(tmp_path, SMALL, (5, 32, 32), 0)
    monkeypatch.setattr(moving_shapes, "make_clip", None)  # drawing again would fail
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert moving_shapes.prepare(tmp_path, SMALL, (5, 32, 32), 0) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    for shapes, clip_shape, seed in (
        (SMALL, (5, 32, 32), 1),
        (SMALL, (5, 32, 40), 0),
        (dataclasses.replace(SMALL, num_test=4), (5, 32, 32), 0),
    ):
        with pytest.raises(UserError, match="was prepared as hard_5x32x32_6-2-3_seed0"):
            moving_shapes.prepare(tmp_path, shapes, clip_shape, seed)


def test_interrupted_preparation_counts_for_nothing(tmp_path, monkeypatch):
    def fail_late(*arguments, real=moving_shapes.make_clip):
        if arguments[3] == "test":
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moving_shapes, "make_clip", fail_late)
        moving_shapes.prepare(tmp_path, SMALL, (5, 32, 32), 0)
    with pytest.raises(UserError, match="found none; run `lumos data shapes`"):
        moving_shapes.open_split(tmp_path, "train")
    # What a killed process leaves: TFDS's temporary folder, even with everything in it.
    folder = moving_shapes.prepare(tmp_path / "a", SMALL, (5, 32, 32), 0)
    left = tmp_path / folder.relative_to(tmp_path / "a").parent / f"incomplete.ABCDEF_{folder.name}"
    left.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(left)
    again = moving_shapes.prepare(tmp_path, SMALL, (5, 32, 32), 0)
    assert again.parent == left.parent and len(moving_shapes.open_split(tmp_path, "test")) == 3


def test_folder_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match="found none"):
        moving_shapes.open_split(tmp_path / "nowhere", "train")
    moving_shapes.prepare(tmp_path, ShapesConfig(num_train=1, num_validation=0, num_test=1), (5, 32, 32), 0)
    for split in ("validation", "eval"):
        with pytest.raises(UserError, match=f"no split '{split}'; it has: "):
            moving_shapes.open_split(tmp_path, split)
    with pytest.raises(UserError, match="counts must be at least 0"):
        moving_shapes.prepare(tmp_path, ShapesConfig(num_train=-1), (5, 32, 32), 0)
    with pytest.raises(UserError, match="seed=-1"):
        moving_shapes.prepare(tmp_path, SMALL, (5, 32, 32), -1)


def test_tensorflow_is_not_imported(tmp_path):
    program = f"""
import sys
from lumos.config import ShapesConfig
from lumos.data import moving_shapes
moving_shapes.prepare({str(tmp_path)!r}, ShapesConfig(num_train=1, num_validation=1, num_test=1), (5, 32, 32), 0)
moving_shapes.open_split({str(tmp_path)!r}, "train")[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
