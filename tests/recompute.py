"""Generation without a cache: the whole sequence through the model at every pass. The oracle of the engine.

It takes from the slots what they say (rounds of the plan, noise, sampler, head, guidance), and knows neither caches nor
padded groups. Attention must be causal over stages: what a finished group has seen does not change then.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lumos.generation import guidance, sampler
from lumos.generation.plan import history_mask
from lumos.layouts import make_layout
from lumos.model.heads import Context, gather_arms
from lumos.sequence.key_ranges import KeyRanges
from lumos.sequence.rule import layout_ranges
from lumos.sequence.tokens import CODE, Positions
from lumos.sequence.upsampled import coarser


class Recompute:
    """Generates as `Engine.decode` does, with the same random numbers. Each function of a pass is compiled."""

    def __init__(self, config, definition, *, settings=None, chunk=1024, num_codes=0):
        self.config, self.settings = config, settings or config.generate
        self.definition, self.chunk, self.num_codes = definition, chunk, num_codes
        self.layout, self.branches = make_layout(config, copies=1), self.settings.guidance.branches()
        self.in_place = config.sequence.targets.name == "in_place"
        kinds = self.layout.tokens.kind
        self.cells = [group[kinds[group] == CODE] for group in self.layout.groups]
        self.most_cells = max(map(len, self.cells))
        where = config.sequence.targets(self.layout)
        source = dict(zip(where.target.tolist(), where.source))
        self.sources = [np.stack([source[i] for i in cells.tolist()]) for cells in self.cells]
        self.forgotten = [self._forgotten(group) for group in self.layout.groups]
        self._features, self._draw = jax.jit(self._features), jax.jit(self._draw)

    def __call__(self, params, text_BP, text_length_B, given_BTHW, keys_B, num_given: int):
        """Return the codes of a whole clip, int32 [B, T, H, W]; the first `num_given` latent frames are those given."""
        c, layout, num, self.num_given = self.settings, self.layout, len(self.cells), num_given
        if not keys_B.ndim:
            keys_B = jnp.stack([jax.random.fold_in(keys_B, row) for row in range(len(text_BP))])
        kept, dropped = layout.first_key(jnp.asarray(text_length_B)), jnp.full(len(text_BP), layout.drop_to)
        first_R = jnp.concatenate([dropped if "text" in branch.drop else kept for branch in self.branches])
        ids_BL = layout.assemble(jnp.asarray(text_BP), jnp.asarray(given_BTHW))
        is_given = [bool((layout.tokens.t[cells] < num_given).all()) for cells in self.cells]
        first = [*is_given, False].index(False)
        known_BL, log_p_BL = jnp.ones(ids_BL.shape, bool), jnp.zeros(ids_BL.shape)
        for cells in self.cells[first:]:
            known_BL = known_BL.at[:, cells].set(layout.tokens.t[cells] < num_given)
        forgotten_L = np.zeros(layout.length, bool)
        if c.sampler.name != "released":  # it keeps given frames whole
            for group, forgotten in zip(layout.groups[:first], self.forgotten):
                forgotten_L[group[forgotten]] = True
        rounds = c.plan.rounds(c.steps, num) if self.in_place else ([[0]], [[0]])
        for g in range(first, num):
            for passes_W in rounds[0] if g == first else rounds[1]:
                inputs_BL = jnp.where(known_BL & ~forgotten_L, ids_BL, self._hidden(ids_BL))
                inputs_BL = jnp.where(layout.tokens.group < 0, ids_BL, inputs_BL)
                history_L = (layout.tokens.group >= 0) & (layout.tokens.group < g)
                hidden = self._features(params, inputs_BL, self._levels(known_BL, g), first_R, history_L)
                working = [(g + w, int(step)) for w, step in enumerate(passes_W) if step >= 0 and g + w < num]
                for other, step in working:
                    before = self._before(inputs_BL, other)
                    drawn = self._draw(params, hidden, self.sources[other], keys_B, other, step, before)
                    ids_BL, known_BL, log_p_BL = self._keep(
                        other, step, other == first, drawn, ids_BL, known_BL, log_p_BL
                    )
            known_BL = known_BL.at[:, self.cells[g]].set(True)  # the released sampler never keeps the last cell
            forgotten_L[layout.groups[g][self.forgotten[g]]] = True
        return layout.codes(ids_BL)

    def _hidden(self, ids_BL):
        """Return the ids that stand for hidden tokens."""
        if self.settings.sampler.name != "next_scale":
            return self.layout.vocabulary.mask
        cells, from_J = self.layout.visual_index, coarser(self.layout)
        shown_BJ = jnp.where(from_J < 0, self.layout.vocabulary.mask, ids_BL[:, cells[from_J]])
        return ids_BL.at[:, cells].set(shown_BJ)

    def _forgotten(self, group):
        """Return which tokens of a finished group are hidden from later ones, bool [N]."""
        hidden = np.zeros(len(group), bool)
        if self.in_place:
            content = np.flatnonzero(self.layout.tokens.kind[max(self.layout.groups, key=len)] >= CODE)
            released = self.settings.sampler.name == "released"
            chosen = content[history_mask(len(content), self.settings.history_ratio, always=released)]
            hidden[chosen[chosen < len(group)]] = True
        return hidden

    def _levels(self, known_BL, g):
        """Return the share of each token's group that is hidden: of finished groups, that of the history."""
        level_BL = jnp.zeros(known_BL.shape)
        if self.in_place:
            for other, cells in enumerate(self.cells):
                share_B1 = (~known_BL[:, cells]).mean(axis=1, keepdims=True)
                share_B1 = share_B1 if other >= g else jnp.full_like(share_B1, self.settings.history_ratio)
                level_BL = level_BL.at[:, self.layout.groups[other]].set(share_B1)
        return level_BL

    def _features(self, params, inputs_BL, level_BL, first_R, history_L):
        """Return the hidden states of the whole sequence for every branch and arm of the head, [R, L, arms, D]."""
        model, layout, num = self.definition.bind(params), self.layout, len(self.branches)
        lacks_R = np.repeat(["history" in branch.drop for branch in self.branches], len(inputs_BL))
        hidden_RL = jnp.where(lacks_R[:, None] & history_L, -1e30, 0.0)
        keys = []
        for rule in self.config.sequence.attention.layers():
            bias_L = rule.bias(layout.tokens)
            bias_RL = hidden_RL if bias_L is None else hidden_RL + np.asarray(bias_L, np.float32)
            keys.append(KeyRanges.of(layout_ranges(layout, rule), first_R, bias_RL))
        *places, is_content = layout.positions
        shifted = (jnp.asarray(a) - first_R[:, None] for a in places)  # rows begin at 0, wherever their text does
        positions = Positions(*shifted, jnp.broadcast_to(is_content, (len(first_R), layout.length)))
        level = {"level_BQ": jnp.tile(level_BL, (num, 1))} if model.config.level_embedding else {}
        hidden_RLD = model.hidden(jnp.tile(inputs_BL, (num, 1)), positions, tuple(keys), **level)
        return model.config.head.arms(model, hidden_RLD)

    def _before(self, inputs_BL, g):
        """Return the codes that are seen one frame before group g, a frame, [B, 1, H, W]; nothing for heads that need none."""
        if not self.config.model.head.reads_before:
            return None
        codes = inputs_BL[:, self.cells[g - 1]] - self.layout.vocabulary.visual_start
        is_code = (codes >= 0) & (codes < self.layout.vocabulary.visual_size) & (g > 0)
        return jnp.where(is_code, codes, -1).reshape(-1, 1, *self.layout.grid[1:])

    def _draw(self, params, hidden_RLND, source_JN, keys_B, g, step, before_BTHW):
        """Return drawn codes, their log-probabilities and the noise that decides what is kept, [B, J] each."""
        model, c = self.definition.bind(params), self.settings
        fold_in = jax.vmap(jax.random.fold_in, (0, None))
        noise = sampler.seeded(fold_in(fold_in(keys_B, g), step)[:, None], self.most_cells)
        if source_JN.shape[1] == 1:
            features = hidden_RLND[:, source_JN[:, 0], 0]
        else:
            features = gather_arms(hidden_RLND, source_JN)
        codes, log_p = model.config.head.draw(
            model, features, noise.draw, lambda logits_R: guidance.combine(logits_R, self.branches),
            lambda logits_V, gumbel_V: c.sampler.choose(logits_V, gumbel_V, c.top_k, c.top_p), self.chunk, self.num_codes,
            Context(before_BTHW),
        )  # fmt: skip
        return codes, log_p, noise.keep()[:, : len(source_JN)]

    def _keep(self, g, step, is_first, drawn, ids_BL, known_BL, log_p_BL):
        """Return the sequence after a pass over a group: its drawn codes, which of them are kept, and how probable they were."""
        (codes, log_p, gumbel), cells, c = drawn, self.cells[g], self.settings
        known = known_BL[:, cells]
        codes = jnp.where(known, ids_BL[:, cells], codes + self.layout.vocabulary.visual_start)
        log_p = jnp.where(known, log_p_BL[:, cells], log_p)
        kept, fixed = jnp.ones_like(known), self.layout.tokens.t[cells] < self.num_given
        if self.in_place:
            num_hidden = c.sampler.counts(len(cells), c.steps)[step]
            temperature = c.sampler.temperatures(c.steps, jnp.bool_(is_first))[step]
            order = c.sampler.order(*(axis[cells] for axis in self.layout.tokens[2:5]))
            kept = c.sampler(sampler.Noise(None, lambda: gumbel), log_p, known, num_hidden, temperature, order) | fixed
        put = lambda x, values: x.at[:, cells].set(values)
        return put(ids_BL, codes), put(known_BL, kept), put(log_p_BL, log_p)
