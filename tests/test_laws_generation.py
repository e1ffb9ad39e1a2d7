"""Laws of generation: what is cached, planned, moved or taken back gives what was computed at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lumos.errors import UserError
from lumos.generation import keeping
from lumos.generation.plan import Diagonal, OneByOne
from lumos.generation.policy import Fifo, FullCache, Window
from lumos.generation.positions import Absolute, Cyclic, Realigned, Relative
from lumos.generation.sampler import row_keys
from lumos.generation.session import Session
from lumos.sequence import rule as rules
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import layout_ranges
from lumos.slots import slot
from lumos.training.transformer_objective import TransformerObjective
from lumos.videos.generator import make_engine

GRID, FULL = (4, 4, 4), FullCache()
NEXT = {
    "sequence__targets": slot("next"),
    "corruption__level": slot("constant", ratio=0.0),
    "loss__weights": slot("all"),
}
ARRANGEMENTS = {
    "frames": {},
    "lumos1": {"sequence__layout": slot("lumos1", visual_start=64, number_zero=40, special_tokens=tuple(range(21, 28))), "model__text_vocab": 64},
    "rows": {"sequence__layout": slot("compact", block=(1, 1, 0))},
    "blocks": {"sequence__layout": slot("compact", block=(2, 2, 2))},
    "clip": {"sequence__layout": slot("compact", block=(0, 0, 0))},
    "planes": {"sequence__layout": slot("planes")},
    "regions": {"sequence__layout": slot("regions")},
    "scales": {"sequence__layout": slot("scales", num_scales=2)},
    "ranks": {"sequence__layout": slot("ranks")},
    "next_token": NEXT | {"sequence__layout": slot("compact", block=(1, 1, 1))},
    "next_region": NEXT | {"sequence__layout": slot("regions")},
    "next_row": NEXT | {"sequence__layout": slot("compact", block=(1, 1, 0))},
    "neighbours": NEXT | {"sequence__layout": slot("planes"), "sequence__targets": slot("neighbours"), "model__head": slot("axes")},
}  # fmt: skip
RULES = {
    "window": slot("window", width=2, sink=1),
    "decay": slot("causal", decay=0.3),
    "local_global": slot("local_global"),
    "space_time": slot("space_time"),
    "axial_turns": slot("axial_turns"),
}


def setup(**changes):
    layers = 3 if "axial" in str(changes) else 2
    changes = {"model__num_layers": layers, "model__init_std": 0.1} | changes
    config = tiny.transformer(sequence__grid=GRID, data__batch_size=2, generate__history_ratio=0.0, **changes)
    objective = TransformerObjective(config)
    params = objective.definition.init(jax.random.key(0))
    return config, objective, params, tiny.token_batch(config)


def whole(config, objective, params, batch, rule=None):
    """Hidden states of the clean sequence in one pass, without a cache, and the layout of generation."""
    engine = make_engine(config, objective.definition)
    layout, model = engine.layout, objective.definition.bind(params)
    ids = layout.assemble(batch["text"], batch["tokens"])
    first = layout.first_key(jnp.asarray(batch["text_length"]))
    keys = tuple(
        KeyRanges.of(layout_ranges(layout, r), first, None if r.bias(layout.tokens) is None else jnp.asarray(r.bias(layout.tokens), jnp.float32)[None])
        for r in (rule or config.sequence.attention).layers()
    )  # fmt: skip
    return layout, ids, jax.jit(lambda: model.hidden(ids, layout.positions, keys))()


def through_cache(config, objective, params, batch, **settings):
    """Hidden states of the same sequence, group by group over the cache."""
    engine = make_engine(config, objective.definition, settings=dataclasses.replace(config.generate, **settings))
    engine = dataclasses.replace(
        engine,
        settings=dataclasses.replace(
            engine.settings, guidance=dataclasses.replace(engine.settings.guidance, scale=1.0)
        ),
    )
    layout, model = engine.layout, objective.definition.bind(params)
    ids = layout.assemble(batch["text"], batch["tokens"])
    state = engine.prefill(params, batch["text"], batch["text_length"], batch["tokens"] * 0, jax.random.key(0), 0)
    groups = engine.groups

    @jax.jit
    def step(state):
        tokens, _, run = engine._open(model, state, state.group[None])
        index = jnp.asarray(groups._index)[groups.row(state.group)]
        hidden, own = run(ids[:, index], jnp.zeros((1, groups.size)), is_write=True)
        cache = keeping.write(engine.view, state.cache, own, tokens, state.group, model.config)
        return state._replace(cache=cache, group=state.group + 1), hidden

    parts = []
    for group in layout.groups:
        state, hidden = step(state)
        parts.append((group, hidden[:, : len(group)]))
    out = np.zeros((len(ids), layout.length, hidden.shape[-1]), np.float32)
    for group, hidden in parts:
        out[:, group] = hidden
    return out, np.concatenate(layout.groups), state


def assert_close(got, want, index, bound=1e-5):
    got, want = np.asarray(got)[:, index], np.asarray(want)[:, index]
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.fast("frames", "lumos1", "planes", "regions", "ranks", "next_row")
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_cached_equals_uncached_for_every_kind_of_group(name):
    run = setup(**ARRANGEMENTS[name])
    got, index, _ = through_cache(*run)
    assert_close(got, whole(*run)[2], index)


@pytest.mark.parametrize("name", RULES)
def test_cached_equals_uncached_for_every_rule(name):
    run = setup(sequence__attention=RULES[name])
    got, index, _ = through_cache(*run)
    assert_close(got, whole(*run)[2], index)


@pytest.mark.parametrize(
    "policy, rule",
    [
        (Fifo(width=2), rules.Window(width=3)),
        (Fifo(width=1), rules.Window(width=2)),
        (Window(width=3, sink=1), rules.Window(width=3, sink=1)),
        (Window(width=2, sink=1), rules.Window(width=2, sink=1)),
    ],
)
def test_a_policy_is_a_mask(policy, rule):
    """Dropping frames from the cache equals hiding them from the queries of a whole sequence."""
    run = setup()
    got, index, state = through_cache(*run, cache=policy)
    assert_close(got, whole(*run, rule)[2], index)
    assert state.cache.num_slots == 6 + 16 * policy.width


def test_bfloat16_is_within_its_rounding():
    """Keys and values are rounded to 8 bits in both paths, sums in another order: 2^-8 for each of the layers' additions."""
    run = setup(model__dtype="bfloat16")
    got, index, _ = through_cache(*run)
    assert_close(got, np.asarray(whole(*run)[2], np.float32), index, bound=2.0**-8 * 4)


def without_text(batch):
    return batch | {"text_length": np.zeros_like(batch["text_length"])}


@pytest.mark.parametrize("positions", [Relative(horizon=2), Realigned(), Cyclic(period=1000)])
def test_positions_are_relative_where_nothing_is_pinned(positions):
    """With a pure window and no text, all position rules that keep distances are the same function."""
    config, objective, params, batch = setup()
    run = config, objective, params, without_text(batch)
    want, index, _ = through_cache(*run, cache=Fifo(width=2))
    got, _, _ = through_cache(*run, cache=Fifo(width=2), positions=positions)
    assert_close(got, want, index)


@pytest.mark.parametrize("positions", [Relative(horizon=2), Realigned()])
def test_a_sink_is_moved(positions):
    run = setup()
    cache = Window(width=2, sink=1)
    want, index, _ = through_cache(*run, cache=cache)
    got, _, _ = through_cache(*run, cache=cache, positions=positions)
    last = index[-16:]
    assert np.abs(got - want)[:, last].max() > 1e-3 and np.abs(got - want)[:, index[:32]].max() < 1e-5


def test_position_rules():
    t, now = jnp.arange(8), jnp.int32(30)
    in_sink = t < 2
    later = jnp.where(in_sink, t, t + 20)  # frames 0, 1 and 22 to 27
    np.testing.assert_array_equal(Relative(horizon=9)(later, now, in_sink, 2, 22), [0, 0, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(Realigned()(later, now, in_sink, 2, 22), np.arange(8))
    np.testing.assert_array_equal(Cyclic(period=5)(later, now, in_sink, 2, 22), np.asarray(later) % 5)
    np.testing.assert_array_equal(Absolute()(later, now, in_sink, 2, 22), later)


# Plans ---------------------------------------------------------------------------------------------------------------


def test_iterations_of_the_diagonal():
    """AR-Diffusion's count for 7 frames of 50 steps (section 3.3), and that of SkyReels-V2 for 8 frames of 8."""
    assert [Diagonal(passes=s).num_iterations(50, 7) for s in (0, 1, 5, 10, 25, 50)] == [50, 56, 80, 110, 200, 350]
    assert [Diagonal(passes=s).num_iterations(8, 8) for s in (0, 1, 2, 4, 8)] == [8, 15, 22, 36, 64]
    assert OneByOne().num_iterations(50, 7) == 350


@pytest.mark.parametrize("lag", [0, 1, 2, 3, 5, 8])
def test_every_group_gets_all_its_passes_in_order(lag):
    plan, steps, num = Diagonal(passes=lag), 8, 6
    first, later = plan.rounds(steps, num)
    seen = {g: [] for g in range(num)}
    for r in range(num):
        for row in later if r else first:
            for w, p in enumerate(row):
                if p >= 0 and r + w < num:
                    seen[r + w].append(int(p))
    assert all(passes == list(range(steps)) for passes in seen.values())


def decode(run, given=0, seed=1, **settings):
    config, objective, params, batch = run
    engine = make_engine(config, objective.definition, settings=dataclasses.replace(config.generate, **settings))
    program = jax.jit(lambda params, *a: engine.decode(params, *a, given))
    return np.asarray(
        program(params, batch["text"], batch["text_length"], jnp.asarray(batch["tokens"]), row_keys(seed, 2))
    )


def test_a_diagonal_with_full_lag_is_one_by_one():
    run = setup(model__init_std=0.3)
    np.testing.assert_array_equal(decode(run, plan=Diagonal(passes=3)), decode(run))


def test_a_diagonal_without_lag_is_all_frames_at_once():
    """Against a loop that runs the whole sequence in every pass, without rounds and without a cache."""
    from lumos.generation.plan import cosine
    from lumos.generation.sampler import choose

    config, objective, params, batch = run = setup(model__init_std=0.3)
    got = decode(run, plan=Diagonal(passes=0), guidance=dataclasses.replace(config.generate.guidance, scale=1.0))
    engine = make_engine(config, objective.definition)
    layout, model, v = engine.layout, objective.definition.bind(params), engine.layout.vocabulary
    keys = KeyRanges.of(layout_ranges(layout, rules.StageCausal()), layout.first_key(jnp.asarray(batch["text_length"])))
    head = model.head(v.visual_start, v.visual_end)
    ids = np.array(layout.assemble(batch["text"], batch["tokens"]))
    frames = layout.visual_index.reshape(4, 16)
    known = np.zeros((2, 4, 16), bool)
    ids[:, layout.visual_index] = v.mask
    hidden_of = jax.jit(lambda ids: model.hidden(ids, layout.positions, keys))
    for p, count in enumerate(cosine(16, 3)):
        hidden = hidden_of(jnp.asarray(ids))
        for f in range(4):
            for b in range(2):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1 + b), f), p)
                draw_key, keep_key = jax.random.split(key)
                gumbel = jnp.stack([jax.random.gumbel(jax.random.fold_in(draw_key, c), (30,)) for c in range(16)])
                codes, log_p = choose(hidden[b, frames[f]] @ head, gumbel)
                codes = np.where(known[b, f], ids[b, frames[f]] - v.visual_start, codes)
                score = log_p + (1 - (p + 1) / 3) * jax.random.gumbel(keep_key, (16,))
                rank = np.argsort(np.argsort(np.where(known[b, f], np.inf, score)))
                known[b, f] |= rank >= count
                ids[b, frames[f]] = np.where(known[b, f], codes + v.visual_start, v.mask)
    np.testing.assert_array_equal(got, layout.codes(jnp.asarray(ids)))


def test_remasking_revises_what_was_kept():
    """With eta = 1 codes that were kept in the first pass are drawn again; with eta = 0 they stay to the end."""
    run = setup(model__init_std=0.3)
    plain, again = (decode(run, sampler=dataclasses.replace(run[0].generate.sampler, eta=eta)) for eta in (0.0, 1.0))
    assert not (plain == again).all() and again.min() >= 0 and again.max() < 30


@pytest.mark.slow
def test_guidance_by_what_a_branch_lacks():
    """Weights of 0 and 1 leave one branch, however many there are; other weights do not."""
    from lumos.generation.guidance import Neighbours, NoGuidance, TextAndHistory, TextGuidance

    run = setup(model__init_std=0.3)
    made = lambda guidance: decode(run, guidance=guidance, plan=Diagonal(passes=1))
    plain = made(NoGuidance())
    assert TextGuidance(scale=1.0).branches() == NoGuidance().branches()
    np.testing.assert_array_equal(made(Neighbours(scale=0.0)), plain)
    np.testing.assert_array_equal(made(TextAndHistory(text=2.0, history=1.0)), made(TextGuidance(scale=2.0)))
    assert not (made(Neighbours(scale=3.0)) == plain).all()


@pytest.mark.slow
def test_a_branch_does_not_see_what_it_lacks():
    """Hidden states of a row that lacks something do not change with it."""
    from lumos.generation.guidance import Neighbours, TextAndHistory

    config, objective, params, batch = setup(model__init_std=0.3)
    model = objective.definition.bind(params)
    plan = Diagonal(passes=1)

    def hidden(guidance, change):
        settings = dataclasses.replace(config.generate, guidance=guidance, plan=plan)
        engine = make_engine(config, objective.definition, settings=settings)
        tokens = (batch["tokens"] + change) % 30
        state = engine.prefill(params, batch["text"], batch["text_length"], tokens, row_keys(1, 2), 1)
        groups = state.group + jnp.arange(engine.width)
        _, template, run = engine._open(model, state, groups)
        codes = jnp.zeros((2, engine.width, 16), jnp.int32).at[:, 1].set(3 + change)
        ids = engine._with_codes(template, groups, codes)
        return np.asarray(run(ids, jnp.zeros((1, ids.shape[1])))[0]).reshape(-1, 2, engine.width, 16, 32)

    for guidance, rows_that_lack in ((TextAndHistory(), [2]), (Neighbours(), [1])):
        before, after = (hidden(guidance, change) for change in (0, 1))
        same = np.abs(before - after).max((1, 3, 4)) < 1e-6  # [branch, group in flight]
        assert not same[0].any()
        # The first group's own codes are the same; later ones of the history branch see the changed one in flight.
        assert same[rows_that_lack, 0].all()
        assert same[rows_that_lack, 2].all() == isinstance(guidance, Neighbours)


# Sessions ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streams():
    """A model and compiled engines of several policies."""
    run = setup(model__init_std=0.3)
    engines = {}

    def session(cache=FULL, undo=0, **settings):
        key = (cache, undo, tuple(sorted(settings.items(), key=str)))
        if key not in engines:
            config, objective, params, _ = run
            changed = dataclasses.replace(config.generate, cache=cache, **settings)
            engines[key] = Session(make_engine(config, objective.definition, settings=changed, undo=undo), params)
        import copy

        return copy.copy(engines[key])

    return run, session


def start(session, run, seed=1, given=None, text=None):
    batch = run[3]
    session.prefill(batch["text"] if text is None else text, batch["text_length"], row_keys(seed, 2), given)
    return session


def test_a_session_gives_the_clip_of_one_program(streams):
    run, session = streams
    got = np.stack(list(start(session(), run).frames(4)), axis=1)
    np.testing.assert_array_equal(got, decode(run))
    given = run[3]["tokens"][:, :2]
    got = np.stack(list(start(session(), run, given=given).frames(2)), axis=1)
    np.testing.assert_array_equal(got, decode(run, given=2)[:, 2:])


@pytest.mark.parametrize("cache", [Fifo(width=2), Window(width=3, sink=1)])
def test_an_endless_session_compiles_once_and_keeps_its_size(streams, cache):
    run, session = streams
    stream = start(session(cache, positions=Relative(horizon=3)), run)
    sizes = []
    for _ in stream.frames(40):
        sizes.append(stream.num_bytes)
    programs = stream._programs
    assert len(set(sizes)) == 1 and programs.next_frame._cache_size() == 1
    assert int(stream.state.group) == 40 and len(stream._made) <= cache.width + 1


def test_frames_depend_on_what_they_see_alone(streams):
    """Two streams that have seen other frames long ago go on alike once the window holds the same."""
    run, session = streams
    cache, position = Fifo(width=1), Relative(horizon=1)
    one, two = (start(session(cache, positions=position), run, seed=seed) for seed in (1, 2))
    list(one.frames(3)), list(two.frames(3))
    assert not (np.asarray(one._made[2][0]) == np.asarray(two._made[2][0])).all()
    two.state = two.state._replace(keys_B=one.state.keys_B)
    for stream in (one, two):
        stream._made = {2: one._made[2]}
        stream.recache()
    np.testing.assert_array_equal(list(one.frames(2)), list(two.frames(2)))


def test_keys_and_values_are_written_once(streams):
    run, session = streams
    stream = start(session(), run)
    stream.advance()
    before = jax.tree.map(np.asarray, stream.state.cache)
    list(stream.frames(3))
    after, count = stream.state.cache, int(before.count)
    for x, y in ((before.k, after.k), (before.v, after.v)):
        np.testing.assert_array_equal(x[:, :, :count], np.asarray(y)[:, :, :count])


@pytest.mark.fast("cache0-0", "cache1-2")
@pytest.mark.parametrize("cache, undo", [(FULL, 0), (Window(width=3, sink=1), 2), (Fifo(width=2), 2)])
def test_rewind_and_replay(streams, cache, undo):
    run, session = streams
    stream = start(session(cache, undo), run)
    frames = list(stream.frames(4))
    state = stream.state
    stream.rewind(2)
    assert stream.frame == 2
    np.testing.assert_array_equal(list(stream.frames(2)), frames[2:])
    for x, y in zip(jax.tree.leaves(state.cache.tokens), jax.tree.leaves(stream.state.cache.tokens)):
        np.testing.assert_array_equal(x[: int(state.cache.count)], y[: int(state.cache.count)])
    np.testing.assert_array_equal(list(start(session(cache), run).frames(4)), frames)  # `undo` changes nothing
    with pytest.raises(UserError, match="rewind by 9 frames; allowed: 0 to"):
        stream.rewind(9)


def test_forks(streams):
    run, session = streams
    stream = start(session(), run)
    list(stream.frames(2))
    same, twice = stream.fork([0, 1]), stream.fork([1, 1], keys_B=row_keys(7, 2))
    rest = np.stack(list(stream.frames(2)))
    np.testing.assert_array_equal(np.stack(list(same.frames(2))), rest)
    other = np.stack(list(twice.frames(2)))
    assert not (other[:, 0] == other[:, 1]).all()


def test_a_recache_is_a_cold_prefill(streams):
    run, session = streams
    text = np.roll(run[3]["text"], 1, axis=0)
    stream = start(session(), run)
    given = np.stack(list(stream.frames(2)), axis=1)
    stream.switch(text, run[3]["text_length"], "recache")
    cold = start(session(), run, given=given, text=text)
    for x, y in ((stream.state.cache.k, cold.state.cache.k), (stream.state.cache.v, cold.state.cache.v)):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(list(stream.frames(2)), list(cold.frames(2)))


def test_a_recache_has_the_sink_too(streams):
    run, session = streams
    stream = start(session(Window(width=3, sink=1)), run)
    list(stream.frames(6))
    stream.recache()
    frame_S = np.asarray(stream._engine.view.frames(stream.state.cache.tokens, stream.state.cache.used_S))
    assert sorted(set(frame_S[frame_S < 99].tolist())) == [-1, 0, 4, 5]


def test_a_recache_counts_frames_as_they_were_made():
    """The bias of a decay goes by frame numbers, also behind a gap; distances of a window rule are refused there."""
    for attention in (slot("causal", decay=0.2), slot("window", width=2)):
        config, objective, params, batch = run = setup(sequence__attention=attention)
        settings = dataclasses.replace(config.generate, cache=Window(width=3, sink=1))
        stream = start(Session(make_engine(config, objective.definition, settings=settings), params), run)
        list(stream.frames(6))
        if attention.name == "window":
            with pytest.raises(UserError, match="sink apart from the window cannot be computed again"):
                stream.recache()
        else:
            view, numbers = stream._engine.view, (jnp.array([0, 4, 5]), jnp.zeros(3, jnp.int32))
            tokens, _ = view.prefix(3, numbers)
            bias = np.asarray(view.prefix_keys(tokens, 3, jnp.zeros(1, jnp.int32))[0].bias_BS)[0]
            np.testing.assert_allclose(bias[-48:].reshape(3, 16)[:, 0], [0, 0.8, 1.0], rtol=1e-6)


def test_switching_keeps_recomputes_or_forgets(streams):
    run, session = streams
    cache = Window(width=3, sink=1)
    text = np.roll(run[3]["text"], 1, axis=0)
    out = {}
    for how in ("none", "keep", "recache", "flush"):
        stream = start(session(cache, positions=Realigned()), run)
        list(stream.frames(4))
        if how != "none":
            stream.switch(text, run[3]["text_length"], how)
        if how == "flush":
            frame_S = np.asarray(stream._engine.view.frames(stream.state.cache.tokens, stream.state.cache.used_S))
            assert sorted(set(frame_S[frame_S < 99].tolist())) == [-1, 0, 3]  # text, sink and the last frame
        out[how] = np.stack(list(stream.frames(2)))
    names = list(out)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert not (out[a] == out[b]).all(), (a, b)
    with pytest.raises(UserError, match="allowed: keep, recache, flush"):
        stream.switch(text, run[3]["text_length"], "forget")


def test_a_cut_moves_what_follows(streams):
    run, session = streams
    pair = [start(session(Fifo(width=2)), run) for _ in range(2)]
    frames = [[np.asarray(s.advance()) for _ in range(2)] for s in pair]
    np.testing.assert_array_equal(frames[0], frames[1])
    pair[1].cut(6)
    assert not (np.asarray(pair[0].advance()) == np.asarray(pair[1].advance())).all()
    times = np.asarray(pair[1].state.cache.tokens.t)
    assert set(times[times >= 0].tolist()) == {1, 8}
    pair[1].recache()
    again = np.asarray(pair[1].state.cache.tokens.t)
    np.testing.assert_array_equal(times[: int(pair[1].state.cache.count)], again[: int(pair[1].state.cache.count)])


def test_a_saved_session_goes_on_bitwise(streams, tmp_path):
    run, session = streams
    stream = start(session(Window(width=3, sink=1)), run)
    list(stream.frames(3))
    stream.save(tmp_path / "session.npz")
    rest = list(stream.frames(3))
    again = session(Window(width=3, sink=1))
    again.restore(tmp_path / "session.npz")
    assert again.frame == 3
    np.testing.assert_array_equal(list(again.frames(3)), rest)
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="is not a saved session"):
        again.restore(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="another model, cache or batch"):
        session(Fifo(width=2)).restore(tmp_path / "session.npz")


def test_what_a_session_cannot_do_is_said(streams):
    run, session = streams
    with pytest.raises(UserError, match="begins with prefill"):
        session(Fifo(width=3)).advance()
    stream = start(session(), run)
    list(stream.frames(4))
    with pytest.raises(UserError, match="ends at 4 latent frames"):
        stream.advance()
    flying = start(session(Fifo(width=2), plan=Diagonal(passes=1)), run)
    list(flying.frames(2))
    with pytest.raises(UserError, match="3 frames are in flight"):
        flying.rewind(1)
    config, objective, params, _ = setup(**ARRANGEMENTS["planes"])
    with pytest.raises(UserError, match="parts of single frames"):
        Session(make_engine(config, objective.definition), params)


@pytest.mark.slow
def test_a_diagonal_streams_what_it_decodes(streams):
    run, session = streams
    got = np.stack(list(start(session(FULL, plan=Diagonal(passes=1)), run).frames(4)), axis=1)
    np.testing.assert_array_equal(got, decode(run, plan=Diagonal(passes=1)))
