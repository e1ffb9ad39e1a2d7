"""Windows over a clip, worked on together, against a loop that runs one after another; frames in another order than time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny

from lumos.errors import UserError
from lumos.generation.guidance import TextGuidance
from lumos.generation.plan import cosine
from lumos.generation.sampler import Noise, RandomOrder, choose
from lumos.generation.session import Session
from lumos.generation.stitched import Stitched
from lumos.layouts import make_layout
from lumos.sequence.arrangement import Ranks
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import StageCausal, layout_ranges
from lumos.slots import slot
from lumos.videos.generator import make_engine

FRAMES, SIZE = small.FRAMES, 4  # of a clip, and of a window
SAMPLER, GUIDANCE = RandomOrder(eta=0.7), TextGuidance(scale=2.0)


@pytest.fixture(scope="module")
def window():
    """A window as a sequence of its own: its layout, and guided logits of its codes by its ids and by what is seen."""
    config, definition, params, batch = small.model()
    layout, model = make_layout(config, (SIZE, 2, 2)), definition.bind(params)
    head = model.head(layout.vocabulary.visual_start, layout.vocabulary.visual_end)
    text = layout.first_key(jnp.asarray(batch["text_length"]))

    @jax.jit
    def logits_of(ids, keys):
        of = lambda first: (
            model.hidden(
                ids, layout.positions, dataclasses.replace(keys, start_RBQ=jnp.maximum(keys.start_RBQ, first[:, None]))
            )
            @ head
        )
        without = of(jnp.full(2, layout.drop_to))
        return without + GUIDANCE.scale * (of(text) - without)

    @jax.jit
    def keep(key, logits, codes, known, count):
        draw_key, keep_key = jax.random.split(key)
        gumbel = jax.vmap(lambda c: jax.random.gumbel(jax.random.fold_in(draw_key, c), (30,)))(jnp.arange(4))
        codes = jnp.where(known, codes, choose(logits, gumbel)[0])
        noise = Noise(None, lambda: jax.random.gumbel(keep_key, (1, 4)))
        return codes, SAMPLER(noise, jnp.zeros((1, 4)), known[None], count, 0.0)[0]

    return layout, logits_of, keep


def one_after_another(window, plan):
    """A clip whose windows are run alone, the last one first."""
    (layout, logits_of, keep), batch = window, small.model()[3]
    v, cells_FC = layout.vocabulary, layout.visual_index.reshape(SIZE, 4)
    stage = np.where(layout.tokens.group >= 0, layout.tokens.stage.max(), layout.tokens.stage)
    codes, known = np.zeros((2, FRAMES, 4), int), np.zeros((2, FRAMES, 4), bool)
    for p, count in enumerate(cosine(4, small.STEPS)):
        new_codes, new_known = codes.copy(), known.copy()
        for begin in reversed(range(0, FRAMES, plan.target)):
            frames = begin - plan.past + np.arange(SIZE)
            exist = np.flatnonzero(plan.loop | (frames >= 0) & (frames < FRAMES))
            # Frames that there are not are padding behind the text that nobody sees.
            tokens = layout.tokens._replace(stage=stage, valid=layout.tokens.valid.copy())
            tokens.valid[cells_FC[np.setdiff1d(np.arange(SIZE), exist)]] = 0
            keys = KeyRanges.of(layout_ranges(dataclasses.replace(layout, tokens=tokens), StageCausal()), None)
            pad = lambda x: jnp.pad(x, ((0, 2 - len(x)), (0, 0), (0, 0)))
            ids = np.array(layout.assemble(jnp.asarray(batch["text"]), jnp.zeros((2, SIZE, 2, 2), int)))
            shown = np.where(known, codes + v.visual_start, v.mask)[:, frames % FRAMES]
            ids[:, cells_FC] = shown
            logits = logits_of(jnp.asarray(ids), KeyRanges(pad(keys.start_RBQ), pad(keys.end_RBQ)))
            for f in range(plan.past, plan.past + plan.target):
                for b in range(2):
                    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1 + b), frames[f]), p)
                    inside = codes[b, frames[f]], known[b, frames[f]], count
                    new = keep(key, logits[b, cells_FC[f]], *inside)
                    new_codes[b, frames[f]], new_known[b, frames[f]] = new
        codes, known = new_codes, new_known
    return codes


@pytest.mark.fast("loop", "whole")
@pytest.mark.parametrize(
    "plan",
    [
        Stitched(past=1, target=2, future=1),
        Stitched(past=2, target=1, future=1, loop=True),
        Stitched(past=0, target=FRAMES, future=0),  # one window: the whole clip jointly
    ],
    ids=["open", "loop", "whole"],
)
def test_windows_together_are_windows_one_after_another(window, plan):
    got, forwards = small.clip(small.engine(plan=plan, sampler=SAMPLER, guidance=GUIDANCE))
    np.testing.assert_array_equal(got, one_after_another(window, plan))
    assert forwards == small.STEPS


def test_the_windows_of_a_clip():
    """GVS: 120 frames are 30 windows of 2 + 4 + 2; a circle closes, an open clip has no frames before its first."""
    frames, exist = Stitched().windows(120)
    assert frames.shape == (30, 8) and np.array_equal(np.sort(frames[:, 2:6].reshape(-1)), np.arange(120))
    assert exist[0].tolist() == [2, 8] and exist[-1].tolist() == [0, 6] and (exist[1:-1] == [0, 8]).all()
    frames, exist = Stitched(loop=True).windows(120)
    assert frames[0].tolist() == [118, 119, 0, 1, 2, 3, 4, 5] and (exist == [0, 8]).all()


def test_what_is_not_stitched_is_said():
    for plan, changes, message in (
        (Stitched(target=3), {}, "their targets divide it"),
        (Stitched(past=2, target=2, future=2), {}, "windows of 2 [+] 2 [+] 2 frames must fit into a clip of 4"),
        (Stitched(past=1, target=2, future=1), {"sequence__layout": slot("planes")}, "block=.1, 0, 0."),
    ):
        config = tiny.transformer(sequence__grid=(FRAMES, 2, 2), **changes)
        with pytest.raises(UserError, match=message):
            make_engine(config, small.model()[1], settings=dataclasses.replace(config.generate, plan=plan))
    with pytest.raises(UserError, match="plan 'stitched' makes whole clips"):
        Session(small.engine(plan=Stitched(past=1, target=2, future=1)), small.model()[2])


def test_frames_in_another_order_than_time():
    """A frame between anchors depends on the one behind it in time, and no frame on one of a later rank (MMPL)."""
    config, definition, params, batch = small.model()
    layout = make_layout(
        dataclasses.replace(config, sequence=dataclasses.replace(config.sequence, layout=Ranks(order=(0, 3, 1, 2))))
    )
    model, text = definition.bind(params), layout.first_key(jnp.asarray(batch["text_length"]))
    keys = KeyRanges.of(layout_ranges(layout, StageCausal()), text)

    @jax.jit
    def hidden(tokens):
        ids = layout.assemble(jnp.asarray(batch["text"]), tokens)
        return model.hidden(ids, layout.positions, keys)[:, layout.visual_index].reshape(2, FRAMES, -1)

    before = np.asarray(hidden(batch["tokens"]))
    for rank, frame in enumerate((0, 3, 1, 2)):
        tokens = batch["tokens"].copy()
        tokens[:, frame] = (tokens[:, frame] + 1) % 30
        changed = np.flatnonzero((before != np.asarray(hidden(tokens))).any((0, 2)))
        assert changed.tolist() == sorted((0, 3, 1, 2)[rank:])
