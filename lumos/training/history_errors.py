"""Errors of the history in training (`sequence.errors`): what visible codes become, and what a step learns of it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumos.generation import sampler
from lumos.model import transformer
from lumos.model.heads import Context
from lumos.objective import ExtraState
from lumos.sequence.errors import Errors

_ERRORS, _DRAWN = 4, 5  # tell the random numbers of errors and of drawn codes from others of the same key


class HistoryErrors:
    """The errors of a run, and their part of its extra state, {"errors": ...}, the same on every device."""

    def __init__(self, errors: Errors, num_codes: int, chunk: int):
        self.errors, self._num_codes, self._chunk = errors, num_codes, chunk

    def extra_state(self) -> ExtraState | None:
        abstract = {"errors": self.errors.state(self._num_codes)}
        if not abstract["errors"]:
            return None
        zeros = lambda leaf, place: jnp.zeros(leaf.shape, leaf.dtype, device=place)
        axes = jax.tree.map(lambda leaf: (None,) * leaf.ndim, abstract)
        return ExtraState(abstract, axes, lambda places: jax.tree.map(zeros, abstract, places))

    def inject(self, key, codes_BJ, step, extra, forward: Callable) -> jax.Array | None:
        """Return the codes that stand where codes are visible; None if they are the true ones.

        forward: (key, visible codes) -> (the model, features of all codes and their context as in `draw`, which codes are predicted [B, J]),
        under masks of that key, without gradients.
        """
        if self.errors.name == "none":
            return None

        def predict(key, seen_BJ):
            model, features, context, predicted_BJ = forward(key, seen_BJ)
            return draw(model, features, context, jax.random.fold_in(key, _DRAWN), self._chunk), predicted_BJ

        state = (extra or {}).get("errors", {})
        return self.errors(jax.random.fold_in(key, _ERRORS), codes_BJ, self._num_codes, step, state, predict)

    def learn(self, key, codes_BJ, extra, model, features_BJF, context, predicted_BJ, ratio_BJ):
        """Return the extra state after a training pass with these features."""
        drawn_BJ = draw(model, features_BJF, context, jax.random.fold_in(key, _DRAWN), self._chunk)
        return extra | {"errors": self.errors.learn(extra["errors"], codes_BJ, drawn_BJ, predicted_BJ, ratio_BJ)}


def draw(
    model: transformer.Transformer, features_BJF: jax.Array, context: Context, key: jax.Array, chunk: int
) -> jax.Array:
    """Draw codes from the model's distribution, int32 [B, J]. chunk: positions whose logits exist at once."""
    batch, num_codes = features_BJF.shape[:2]
    noise = sampler.seeded(jax.random.split(key, batch)[:, None], num_codes)
    same = lambda logits: logits
    chunk = max(chunk // batch, 1)
    return model.config.head.draw(model, features_BJF, noise.draw, same, sampler.choose, chunk, context=context)[0]
