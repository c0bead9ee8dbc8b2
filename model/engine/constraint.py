"""Texts of a form, as an engine is told of them: which tokens may come next. It knows no form itself. No torch."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenConstraint(Protocol):
    """The text of one choice as it grows. Only the engine's thread uses it, between two steps: it must be quick."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of text may come."""

    def allowed(self) -> NDArray[np.int64] | None:
        """Ids that may come next, ascending and never none; the end of text among them where it may be. None for all.

        Raises ``ConstraintFailed``, which ends this request alone.
        """

    def advance(self, token_id: int) -> None:
        """Take a token that is allowed. Raises ``ConstraintFailed``."""


ConstraintMaker = Callable[[], TokenConstraint]
