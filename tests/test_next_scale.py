"""Next-scale prediction: hidden cells show the code of the coarser cell that stands for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from recompute import Recompute

from lumos.errors import UserError
from lumos.generation.sampler import row_keys
from lumos.layouts import make_layout
from lumos.sequence.codebooks import Layers, Parts
from lumos.sequence.corruption import Context
from lumos.sequence.upsampled import Upsampled, coarser
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

METHOD = dict(
    sequence__layout=slot("scales", num_scales=3), sequence__copies=2, corruption__level=slot("constant", ratio=1.0),
    corruption__kernel=slot("upsampled"), generate__sampler=slot("next_scale"), generate__steps=1,
    generate__history_ratio=0.0,
)  # fmt: skip


@pytest.mark.parametrize("copies", [1, 2])
def test_cells_stand_for_finer_ones_and_for_the_next_frame(copies):
    layout = make_layout(tiny.transformer(**METHOD | dict(sequence__copies=copies, sequence__grid=(2, 4, 4))))
    first = coarser(layout)[:16].reshape(4, 4)
    # Scales: (0, 0); then the other even rows and columns, from it; then all others, from the even ones.
    want = np.full((4, 4), -1)
    for y, x in np.ndindex(4, 4):
        if (y, x) != (0, 0):
            want[y, x] = 0 if y % 2 == x % 2 == 0 else y // 2 * 2 * 4 + x // 2 * 2
    np.testing.assert_array_equal(first, want)
    second = coarser(layout)[16:].reshape(4, 4)
    np.testing.assert_array_equal(second, np.where(want < 0, 0, want + 16))


def test_layers_stand_above_their_areas():
    parents = Layers(num=3).parents((1, 1, 42)).reshape(2, 21)
    np.testing.assert_array_equal(parents[1] - 21, parents[0])
    np.testing.assert_array_equal(parents[0, :5], [0, 0, 0, 0, 0])
    np.testing.assert_array_equal(parents[0, 5:].reshape(4, 4), 1 + np.kron([[0, 1], [2, 3]], np.ones((2, 2), int)))


def test_parts_come_one_after_the_other():
    stages = Parts(num=3).stages((2, 1, 6))
    np.testing.assert_array_equal(stages[:, 0], [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]])
    np.testing.assert_array_equal(
        Layers(num=2, first="layer").stages((2, 1, 5))[:, 0], [[0, 2, 2, 2, 2], [1, 3, 3, 3, 3]]
    )
    with pytest.raises(
        UserError, match="layout='layers' with num=2 needs tokens of config.tokenizer.composition='layers'"
    ):
        tiny.transformer(sequence__layout=slot("layers"), sequence__grid=(1, 1, 5))


def test_training_shows_the_parent_in_the_place_of_a_hidden_cell():
    config = tiny.transformer(**METHOD)
    layout, batch = make_layout(config), tiny.token_batch(config)
    ids = layout.assemble(batch["text"], batch["tokens"])
    chosen = jnp.zeros(ids.shape, bool).at[:, layout.visual_index].set(True)
    shown = np.asarray(Upsampled()(None, ids, chosen, layout.vocabulary, Context(layout, None, None)))
    codes, from_J = batch["tokens"].reshape(len(ids), -1), coarser(layout)
    want = np.where(from_J < 0, layout.vocabulary.mask, codes[:, from_J] + layout.vocabulary.visual_start)
    np.testing.assert_array_equal(shown[:, layout.visual_index], want)
    np.testing.assert_array_equal(shown[:, layout.clean_index], ids[:, layout.clean_index])


@pytest.mark.slow
def test_generation_shows_what_training_showed():
    config = tiny.transformer(**METHOD, sequence__grid=(2, 4, 4), data__batch_size=2, model__init_std=0.3)
    definition = TransformerObjective(config).definition
    params, batch = definition.init(jax.random.key(0)), tiny.token_batch(config)
    arguments = (params, batch["text"], batch["text_length"], batch["tokens"], row_keys(5, 2))
    decode = jax.jit(make_engine(config, definition).decode, static_argnums=5)
    oracle = Recompute(config, definition)
    for given in (0, 1):
        np.testing.assert_array_equal(decode(*arguments, given), oracle(*arguments, given))


def test_a_sampler_shows_the_model_what_it_was_trained_on():
    with pytest.raises(
        UserError, match="sampler='confidence' shows the model what config.corruption.kernel='replace' never"
    ):
        tiny.transformer(corruption__kernel=slot("replace"), loss__weights=slot("all"))
    with pytest.raises(UserError, match="steps=3 must be 1 with the sampler 'next_scale'"):
        tiny.transformer(**METHOD | {"generate__steps": 3})
