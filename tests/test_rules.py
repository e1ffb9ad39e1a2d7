"""Laws of every rule: kernels compute what the predicate says, on every layout, and nothing else reaches a token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_layouts import build

from lumos.errors import UserError
from lumos.model import attention, transformer
from lumos.sequence.arrangement import Compact, Planes, Ranks, Regions, Scales
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.lumos1 import Lumos1
from lumos.sequence.rule import (
    Axial,
    AxialTurns,
    Full,
    Local,
    LocalGlobal,
    Prefix,
    Scenes,
    SpaceTime,
    StageCausal,
    Window,
    compile_rule,
    count_pairs,
    layout_ranges,
    visible,
)
from lumos.sequence.storage import Storage
from lumos.sequence.tokens import CODE, STREAM, TEXT

GRID = (4, 4, 4)
LAYOUTS = {
    "frames": build(Compact(), GRID),
    "rows": build(Compact(block=(1, 1, 0)), GRID),
    "tokens": build(Compact(block=(1, 1, 1)), GRID, start="token"),
    "one": build(Compact(block=(0, 0, 0)), GRID),
    "started": build(Compact(), GRID, start="block"),
    "hybrid": build(Compact(block=(1, 1, 0)), GRID, start="token"),
    "copies": build(Compact(), GRID, copies=2),
    "row copies": build(Compact(block=(1, 1, 0)), GRID, copies=2),
    "streams": build(Compact(), GRID, streams=((7, 2),)),
    "planes": build(Planes(), GRID, start="one"),
    "regions": build(Regions(), GRID, start="token"),
    "scales": build(Scales(), GRID),
    "ranks": build(Ranks(), GRID),
    "lumos1": build(Lumos1(), GRID),
}
LAYOUTS = {  # what models run of them
    name: dataclasses.replace(
        layout,
        tokens=layout.tokens.at(slice(layout.num_read)),
        template=layout.template[: layout.num_read],
        num_unread=0,
    )
    for name, layout in LAYOUTS.items()
}
RULES = {
    "causal": StageCausal(),
    "full": Full(),
    "prefix": Prefix(),
    "window": Window(width=2),
    "sink": Window(width=1, sink=1, sink_gate=-0.7, decay=0.3),
    "scenes": Scenes(),
    "scenes apart": Scenes(across=False),
    "local": Local(decay=0.2),
    "axial t": Axial(axis="t"),
    "axial y": Axial(axis="y"),
    "axial x": Axial(axis="x", decay=-0.4),
    "local_global": LocalGlobal(every=2),
    "space_time": SpaceTime(),
    "axial_turns": AxialTurns(),
}
# Planes cut across frames, so what rules that go by frames leave visible is in many pieces: refused.
SCATTERED = [(name, "planes") for name in ("window", "sink", "scenes apart", "local", "local_global", "space_time")]
TEXT_LENGTH = 5


def _with_scenes(layout):
    """Return the layout with two scenes of two frames; each has half of the text, and markers belong to all."""
    t, kind = layout.tokens.t, layout.tokens.kind
    segment = np.where(t >= 0, t // 2, np.where(kind == TEXT, np.arange(layout.length) // 3, -1))
    return dataclasses.replace(layout, tokens=layout.tokens._replace(segment=segment.astype(np.int32)))


def _reference(rule, tokens):
    """The rules once more, in loops over pairs of tokens and in words of their own."""
    table = [dict(zip(tokens._fields, map(int, row))) for row in zip(*tokens)]
    seen = np.zeros((len(table), len(table)), bool)
    for i, q in enumerate(table):
        for j, k in enumerate(table):
            if q["copy"] == 0:
                causal = k["copy"] == 0 and k["stage"] <= q["stage"]
            else:
                causal = k["stage"] < q["stage"] if k["copy"] == 0 else k["stage"] == q["stage"]
            in_video = q["t"] >= 0 and k["t"] >= 0
            match rule:
                case Prefix():
                    ok = causal or (q["kind"] == TEXT and k["kind"] == TEXT)
                case Window():
                    ok = causal and (not in_video or q["t"] - k["t"] < rule.width or k["t"] < rule.sink)
                case Scenes():
                    other = q["segment"] >= 0 and k["segment"] >= 0 and q["segment"] != k["segment"]
                    ok = causal and not (other and not (rule.across and k["t"] >= 0))
                case Local():
                    ok = causal and (k["t"] < 0 or k["t"] == q["t"])
                case Axial():
                    same = all(q[name] == k[name] for name in "tyx" if name != rule.axis)
                    ok = causal and (k["t"] < 0 or same and (q["kind"] >= CODE) == (k["kind"] >= CODE))
                case _:
                    ok = causal
            seen[i, j] = ok
    return seen


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_ranges_are_the_predicate(name, layout):
    is_scattered, layout = (name, layout) in SCATTERED, _with_scenes(LAYOUTS[layout])
    if is_scattered:
        with pytest.raises(
            UserError, match=r"gives \d+ ranges of keys to one query in this layout, at most 4 are computed"
        ):
            [compile_rule(rule, layout.tokens, layout.tokens) for rule in RULES[name].layers()]
        return
    for rule in RULES[name].layers():
        predicate, ranges = (
            visible(rule, layout.tokens, layout.tokens),
            compile_rule(rule, layout.tokens, layout.tokens),
        )
        assert ranges.start_RQ.shape[0] <= 4
        np.testing.assert_array_equal(KeyRanges.of(ranges, None).dense(layout.length)[0], predicate)
        if name != "full" and layout.length < 120:
            np.testing.assert_array_equal(predicate, _reference(rule, layout.tokens))
        # Padding in front of the text hides its own keys and no others, whatever the order of the keys.
        first = 3
        padded = KeyRanges.of(ranges, jnp.array([first])).dense(layout.length)[0]
        np.testing.assert_array_equal(padded, predicate & (np.arange(layout.length) >= first))
        if len(RULES[name].layers()) == 1:
            assert count_pairs(layout, rule, TEXT_LENGTH - first) == predicate[first:, first:].sum()
        # A padded storage moves queries and adds none that matter.
        storage = Storage(layout.length, shards=2, multiple=8)
        stored = KeyRanges.of(layout_ranges(layout, rule, storage), None).dense(storage.num_slots)[0]
        np.testing.assert_array_equal(
            np.asarray(stored)[np.argsort(storage.order)][: layout.length, : layout.length], predicate
        )
        assert not np.asarray(stored)[np.argsort(storage.order)][: layout.length, layout.length :].any()


@pytest.mark.parametrize(
    "name, layout",
    [(name, "copies") for name in RULES if len(RULES[name].layers()) == 1]
    + [("sink", "ranks"), ("axial t", "streams")],
)
def test_flash_is_dense_on_every_rule(monkeypatch, name, layout):
    monkeypatch.setattr(attention, "_most_per_block", lambda num_heads: (32, 16))
    layout = _with_scenes(LAYOUTS[layout])
    keys = jax.random.split(jax.random.key(0), 4)
    q, weight = (jax.random.normal(key, (2, layout.length, 2, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, layout.length, 1, 8)) for key in keys[2:])
    rule = RULES[name].layers()[0]
    bias_L = rule.bias(layout.tokens)
    bias = None if bias_L is None else jnp.asarray(bias_L, jnp.float32)[None]
    ranges = KeyRanges.of(compile_rule(rule, layout.tokens, layout.tokens), jnp.array([0, 3]), bias)

    def run(kernel):
        loss = lambda q, k, v: (attention.attend(q, k, v, ranges, kernel) * weight).sum()
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v))

    for got, want in zip(run("flash"), run("dense")):
        np.testing.assert_allclose(got, want, atol=3e-5, rtol=1e-5)


def _model(rule, layout, **changes):
    """Return a function (ids [B, L], inputs of another layout) -> hidden states of a tiny model with this rule."""
    config = tiny.transformer(model__num_layers=len(rule.layers()), model__init_std=0.3, **changes)
    definition = transformer.make_definition(config.model, layout.vocabulary)
    params = definition.init(jax.random.key(0))

    def keys(layout, of_layer):
        bias = of_layer.bias(layout.tokens)
        bias = None if bias is None else jnp.asarray(bias, jnp.float32)[None]
        return KeyRanges.of(layout_ranges(layout, of_layer), None, bias)

    def run(ids_BL, layout=layout):
        turns = tuple(keys(layout, of_layer) for of_layer in rule.layers())
        return definition.bind(params).hidden(ids_BL, layout.positions, turns)

    return run


@pytest.mark.parametrize(
    "name, layout", [*((name, "row copies") for name in RULES), ("causal", "hybrid"), ("sink", "streams")]
)
def test_a_token_depends_on_what_it_sees_and_on_nothing_else(name, layout):
    """With a layer of each kind: what reaches a token is the product of the predicates, and the token itself."""
    layout = _with_scenes(LAYOUTS[layout])
    rule = RULES[name]
    run = jax.jit(_model(rule, layout))
    reach = np.eye(layout.length, dtype=bool)
    for of_layer in rule.layers():
        reach = (visible(of_layer, layout.tokens, layout.tokens) | np.eye(layout.length, dtype=bool)) @ reach
    ids = np.random.default_rng(0).integers(0, layout.vocabulary.visual_end, layout.length)
    changed = np.array([0, 4, *np.random.default_rng(1).choice(np.arange(5, layout.length), 6, replace=False)])
    others = np.tile(ids, (len(changed), 1))
    others[np.arange(len(changed)), changed] = (ids[changed] + 7) % layout.vocabulary.visual_end
    # One row at a time: a matmul may round a row by its place among the others.
    before, *after = (np.asarray(run(jnp.asarray(row[None])))[0] for row in (ids, *others))
    for token, hidden in zip(changed, after):
        np.testing.assert_array_equal((hidden != before).any(axis=-1), reach[:, token])


@pytest.mark.parametrize("name", ["sink", "local", "axial x"])
def test_a_decay_is_slope_times_latent_frames(name):
    """Text stands where frame 0 does; what is the same for all keys of a query cancels."""
    rule, tokens = RULES[name], LAYOUTS["frames"].tokens
    pair = rule.decay * (np.maximum(tokens.t, 0)[None] - np.maximum(tokens.t, 0)[:, None])
    if name == "sink":
        pair = pair + rule.sink_gate * (tokens.t == 0)[None]
    bias = np.asarray(rule.bias(tokens))
    seen = visible(rule, tokens, tokens)
    softmax = lambda logits: jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    logits = np.random.default_rng(0).normal(size=seen.shape)
    np.testing.assert_allclose(softmax(logits + bias), softmax(logits + pair), atol=1e-6)
    assert StageCausal().bias(tokens) is None


def test_scenes_read_their_own_text():
    layout = _with_scenes(LAYOUTS["frames"])
    seen = visible(Scenes(), layout.tokens, layout.tokens)
    text, second = np.arange(5), np.flatnonzero(layout.tokens.t == 2)
    np.testing.assert_array_equal(seen[second][:, text], np.tile(text >= 3, (len(second), 1)))
    assert seen[np.ix_(second, np.flatnonzero(layout.tokens.t == 0))].all()
    apart = visible(Scenes(across=False), layout.tokens, layout.tokens)
    assert not apart[np.ix_(second, np.flatnonzero(layout.tokens.t < 2))][:, 5:].any()


@pytest.mark.parametrize("name", ["full", "causal", "axial_turns"])
def test_the_stored_order_means_nothing(name):
    """Tokens in another order, with their table: hidden states go along."""
    layout, rule = LAYOUTS["streams"], RULES[name]
    order = np.random.default_rng(0).permutation(layout.length)
    if name == "causal":  # frames backwards in memory: every query still has a few ranges
        order = np.concatenate([np.flatnonzero(layout.tokens.t == t) for t in (3, 2, 1, 0, -1)])
    other = dataclasses.replace(
        layout, tokens=layout.tokens.at(order), template=layout.template[order], visual_index=np.argsort(order)[layout.visual_index]
    )  # fmt: skip
    if name == "axial_turns":  # its keys have an order of their own
        order = np.arange(layout.length)
        frames = [np.flatnonzero(layout.tokens.t == t) for t in range(4)]
        order[-sum(map(len, frames)) :] = np.concatenate([np.random.default_rng(1).permutation(f) for f in frames])
        other = dataclasses.replace(layout, tokens=layout.tokens.at(order))
    run = _model(rule, layout)
    ids = np.random.default_rng(0).integers(0, layout.vocabulary.visual_end, (2, layout.length))
    # The offset of the axes is read from the table: the same in every order.
    assert other.offset == layout.offset
    np.testing.assert_allclose(run(ids[:, order], other), run(ids)[:, order], atol=1e-5)


def test_streams_are_seen_by_their_frame_and_later_ones():
    tokens = LAYOUTS["streams"].tokens
    seen = visible(StageCausal(), tokens, tokens)
    for i in np.flatnonzero(tokens.kind == STREAM):
        np.testing.assert_array_equal(seen[tokens.kind == CODE, i], tokens.t[tokens.kind == CODE] >= tokens.t[i])
