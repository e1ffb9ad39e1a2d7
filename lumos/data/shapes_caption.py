"""Describe a moving_shapes scene in one sentence, and make the prompts that generation is judged on."""

from __future__ import annotations

import dataclasses

import numpy as np

from lumos.data.shapes_scene import SPLITS, Scene, ShapeObject, sample_scene

_VERBS = (("moves", "moving"), ("slides", "sliding"), ("drifts", "drifting"), ("travels", "travelling"))
_TOWARDS = {
    "right": ("right", "to the right"),
    "left": ("left", "to the left"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up-right": ("up and right", "to the upper right"),
    "up-left": ("up and left", "to the upper left"),
    "down-right": ("down and right", "to the lower right"),
    "down-left": ("down and left", "to the lower left"),
}
_PANS = ("right", "down", "left", "up")  # every 90 degrees, y pointing down
_ON_ROUTE = {
    "left and right": ("left and right", "to the left and to the right"),
    "up and down": ("up and down", "upwards and downwards"),
}
_ADVERBS = {"slow": "slowly", "normal": "", "fast": "quickly"}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A caption and what its video must show of the main object."""

    caption: str
    colour: str
    shape: str
    direction: str


def write_caption(scene: Scene, seed: int, split: str, index: int) -> str:
    """Return a sentence that names colour, shape and direction of every object, the main one first.

    Words are drawn independently of the pixels' random numbers. Sizes, speeds, textures, the background, the
    camera and who hides whom are mentioned now and then, and always truly.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 2])
    clauses = [_clause(rng, scene.main, opening=True)]
    for place, other in enumerate(scene.objects[1:], start=1):
        if len(scene.objects) == 2 and scene.occlusion:
            # The one drawn later is in front.
            relation = "behind" if scene.depth.index(place) > scene.depth.index(0) else "in front of"
            clauses.append(f"{relation} {_noun(rng, other, 'a')} {_participle(rng, other)}")
        else:
            clauses.append(f"{'while' if place == 1 else 'and'} {_clause(rng, other, opening=False)}")
    caption = " ".join(clauses)
    if len(scene.objects) == 1 and len(caption.split()) <= 8 and rng.random() < 0.4:
        brightness = "dark" if scene.background.colour_C.mean() < 120 else "light"
        caption += f" over a {brightness} background"
    if np.linalg.norm(scene.background.camera_2) > 0.012 * min(scene.clip_shape[1:]) and rng.random() < 0.6:
        x, y = scene.background.camera_2
        caption += f", the camera pans {_PANS[round(np.arctan2(y, x) / (np.pi / 2)) % 4]}"
    return caption


def test_prompts(level: str, num: int, seed: int = 0, split: str = "test") -> list[Prompt]:
    """Return `num` prompts of the split's combinations, evenly spread over colours, shapes and directions.

    Raises:
      UserError: unknown level or split.
    """
    prompts = []
    for index in range(num):
        scene = sample_scene(level, (17, 64, 64), seed, split, index)
        main = scene.main
        prompts.append(Prompt(write_caption(scene, seed, split, index), main.colour, main.shape, main.direction))
    return prompts


def _clause(rng: np.random.Generator, item: ShapeObject, opening: bool) -> str:
    """Return a subject with its motion; only the first clause of a sentence may be verbless."""
    form = rng.integers(5) if opening else rng.integers(2)
    noun = _noun(rng, item, "the" if opening and rng.random() < 0.25 and form < 2 else "a")
    if form == 0:
        return f"{noun} {_motion(rng, item, _VERBS[rng.integers(len(_VERBS))][0])}"
    if form == 1:
        return f"{noun} is {_participle(rng, item)}"
    if form == 2:
        return f"{noun} {_participle(rng, item)}"
    return f"{'there is' if form == 3 else 'a video of'} {noun} {_participle(rng, item)}"


def _participle(rng: np.random.Generator, item: ShapeObject) -> str:
    return _motion(rng, item, _VERBS[rng.integers(len(_VERBS))][1])


def _motion(rng: np.random.Generator, item: ShapeObject, verb: str) -> str:
    towards = (_TOWARDS | _ON_ROUTE)[item.direction][rng.integers(2)]
    adverb = _ADVERBS[item.speed] if rng.random() < 0.7 else ""
    bounce = (
        ("and bouncing" if verb.endswith("ing") else "and bounces") + " off the edge"
        if item.bounces and item.direction in _TOWARDS
        else ""
    )
    return " ".join(filter(None, (verb, adverb, towards, bounce)))


def _noun(rng: np.random.Generator, item: ShapeObject, article: str) -> str:
    size = item.size if item.size != "medium" and rng.random() < 0.3 else ""
    texture = item.texture if rng.random() < 0.7 else ""
    return " ".join(filter(None, (article, size, texture, item.colour, item.shape)))
