"""Frames that are made before their condition is known, and taken back where it turns out another.

In an interactive video each frame has a condition (here its prompt) that comes late. A draft makes the next frames as if the
condition stayed; those up to the first other one are kept, the session steps back there and goes on under the new condition
(speculative sampling of NFD, arXiv 2506.01380). Noise goes by the number of a frame, so kept frames are those that there
would be without drafts, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lumos.errors import UserError
from lumos.generation.session import Session

Text = tuple[np.ndarray, np.ndarray]  # ids of the prompts [B, P], and their lengths [B]


class Drafts:
    """Frames of a session in rounds of drafts. `kept` and `drafted` count frames of all rounds, `rounds` the rounds.

    Conditions that stay with probability p keep 1 + p + ... + p^(ahead - 1) frames a round on average.
    """

    def __init__(self, session: Session, condition: Callable[[int], Text], ahead: int = 4):
        """`condition` returns the prompts of a latent frame; it is asked once that frame is next. Under a bounded cache the
        session's engine needs `undo` of at least ahead - 1. Raises UserError."""
        if ahead < 1:
            raise UserError(f"ahead={ahead} must be at least 1 frame")
        session.rewind(0)  # says what cannot be taken back
        if session.most_rewind is not None and ahead - 1 > session.most_rewind:
            raise UserError(
                f"drafts of {ahead} frames need an engine with undo={ahead - 1}, so that they can be taken back"
            )
        self._session, self._condition, self._ahead = session, condition, ahead
        self.kept = self.drafted = self.rounds = 0

    def frames(self, num: int) -> Iterator[np.ndarray]:
        """Yield the codes of the next `num` frames, [B, H, W] each. Read to its end, or the session stays ahead."""
        session, left, known = self._session, num, None
        while left:
            known = known or self._condition(session.frame)
            if not _equal(known, session.text):
                session.switch(*known, how="keep")
            drafts = [session.advance() for _ in range(min(self._ahead, left))]
            first, known = session.frame - len(drafts), None
            for n, codes in enumerate(drafts, 1):
                yield np.asarray(codes)
                if n == len(drafts):
                    break
                known = self._condition(first + n)
                if not _equal(known, session.text):
                    break
                known = None
            session.rewind(len(drafts) - n)
            left -= n
            self.kept, self.drafted, self.rounds = self.kept + n, self.drafted + len(drafts), self.rounds + 1


def _equal(one: Text, other: Text) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other))
