"""Frames in drawn orders: who sees whom, where frames stand, and that a layout of that order says the same."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.errors import UserError
from lumos.sequence.corruption import Corrupted
from lumos.sequence.frame_order import OneOf, RandomOrder, positions
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective

ROWS, FRAMES = 8, 4


def test_orders_are_drawn_alike_and_some_clips_stay_in_time():
    drawn = np.asarray(RandomOrder(share=0.75, first=1)(jax.random.key(0), 24_000, FRAMES))
    found = {order: 0 for order in itertools.permutations(range(FRAMES))}
    for order in map(tuple, drawn.tolist()):
        found[order] += 1
    for order, number in found.items():
        share = 0.75 / 6 * (order[0] == 0) + 0.25 * (order == (0, 1, 2, 3))
        np.testing.assert_allclose(number / 24_000, share, atol=5 * (share * (1 - share) / 24_000) ** 0.5)
    two = np.asarray(OneOf(orders=((0, 2, 1), (2, 1, 0)))(jax.random.key(0), 24_000, 3))
    np.testing.assert_allclose((two == (0, 2, 1)).all(1).mean(), 0.5, atol=5 * (0.25 / 24_000) ** 0.5)
    assert ((two == (0, 2, 1)).all(1) | (two == (2, 1, 0)).all(1)).all()


class Fixed(TransformerObjective):
    """Masks a third of the cells by their rank, and keeps all texts."""

    def _corruption(self, layout, batch, key):
        shape = (ROWS, FRAMES, 16)
        mask = jnp.broadcast_to((jnp.arange(FRAMES)[:, None] + jnp.arange(16)) % 3 == 0, shape)
        return Corrupted(mask, jnp.ones(shape[:2]), jnp.ones(shape[:2], bool)), jnp.zeros(ROWS, bool)


@functools.cache
def _objective(order=None, layout=None, copies=1):
    method = {"model__scan_layers": False, "model__attention": "dense"}
    method |= {"sequence__order": slot("one_of", orders=(order,))} if order else {}
    method |= {"sequence__layout": slot("ranks", order=layout)} if layout else {}
    return Fixed(
        tiny.transformer(sequence__grid=(FRAMES, 4, 4), sequence__copies=copies, model__num_layers=1, **method)
    )


@functools.cache
def _programs(order=None, layout=None, copies=1):
    """Jitted: the loss, and the features of every rank, with the codes as they are given."""
    objective = _objective(order, layout, copies)
    batch = jax.tree.map(jnp.asarray, tiny.token_batch(objective.config))

    def loss(params, tokens):
        return objective.loss(params, batch | {"tokens": tokens}, jax.random.key(0)).sum

    def hidden(params, tokens):
        by_rank = batch | {"tokens": tokens}
        if order:
            by_rank = by_rank | {"order": jnp.broadcast_to(jnp.asarray(order), (ROWS, FRAMES))}
        run = objective._forward(
            objective.layout,
            objective.definition,
            params,
            by_rank,
            *objective._corruption(None, None, None),
            jax.random.key(0),
        )
        return run.hidden_BLD[:, objective.layout.visual_index].reshape(ROWS, FRAMES, 16, -1)

    return (
        objective.definition.init(jax.random.key(0)),
        batch["tokens"],
        jax.jit(loss),
        jax.jit(hidden),
    )


def test_the_order_of_time_is_frame_by_frame_bit_for_bit():
    params, tokens, drawn, _ = _programs(order=(0, 1, 2, 3))
    plain = _programs()[2]
    jax.tree.map(np.testing.assert_array_equal, drawn(params, tokens), plain(params, tokens))


@pytest.mark.parametrize("copies", [1, 2])
def test_an_order_is_that_of_the_layout_that_is_made_for_it(copies):
    """By another path: the cells of layout "ranks" are sorted by rank, and nothing is moved."""
    order = (0, 3, 1, 2)
    drawn, ranks = _programs(order, None, copies), _programs(None, order, copies)
    of_drawn, of_ranks = (_objective(*key, copies).layout for key in ((order, None), (None, order)))
    np.testing.assert_array_equal(of_drawn.tokens.stage, of_ranks.tokens.stage)
    moved = positions(of_drawn, jnp.asarray([order]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), moved, of_ranks.positions)
    # Masks are by rank in one and by frame in the other.
    by_rank = drawn[1][:, jnp.asarray(order)]
    mine, other = drawn[3](drawn[0], by_rank), ranks[3]
    objective = _objective(None, order, copies)
    mask, *rest = objective._corruption(None, None, None)[0]
    place = np.argsort(order)
    objective._corruption = lambda *_: (Corrupted(mask[:, place], *rest), jnp.zeros(ROWS, bool))
    np.testing.assert_array_equal(mine, other(ranks[0], drawn[1])[:, jnp.asarray(order)])


def test_a_later_rank_changes_no_earlier_frame():
    order = (0, 3, 1, 2)
    params, tokens, _, hidden = _programs(order)
    by_rank = tokens[:, jnp.asarray(order)]
    before = hidden(params, by_rank)
    for rank in range(FRAMES):
        other = by_rank.at[:, rank].set((by_rank[:, rank] + 1) % 30)
        changed = np.asarray((hidden(params, other) != before).any((0, 2, 3)))
        np.testing.assert_array_equal(changed, np.arange(FRAMES) >= rank)


def test_what_goes_by_time_does_not_go_with_orders():
    for changes, message in (
        ({"sequence__attention": slot("window")}, "goes by rank, but config.sequence.attention='window' by time"),
        (
            {"sequence__attention": slot("causal", decay=0.1)},
            "goes by rank, but config.sequence.attention='causal' by time",
        ),
        ({"corruption__given": slot("subset")}, "needs config.corruption.given='none', not 'subset'"),
        ({"loss__frame_weights": (1.0, 1.0, 2.0)}, r"needs config.loss.frame_weights=\(\), not \(1.0"),
        ({"sequence__layout": slot("planes")}, "needs frames that follow one another .* not 'planes'"),
        ({"sequence__layout": slot("lumos1")}, "needs frames that follow one another .* not 'lumos1'"),
        (
            {"sequence__order": slot("one_of", orders=((1, 0),))},
            "must be at least one, of the 3 latent frames of clips",
        ),
        ({"sequence__order": slot("one_of", orders=((1, 1),))}, "must each hold all latent frames"),
    ):
        with pytest.raises(UserError, match=message + "[^\n]*$"):
            tiny.transformer(**{"sequence__order": slot("random")} | changes)
