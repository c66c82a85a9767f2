"""How much is measured."""

from typing import NamedTuple


class Plan(NamedTuple):
    """Every rival is measured for a moment, in turn with the others, again and again.

    Attributes:
        sessions: How many clients there are.
        rounds: How often each rival is measured.
        fresh_rounds: How often, where it is started anew each time.
        seconds: How long each time; where it takes more to see something, a multiple.
        warm_up: How long it runs before that.
        most_sessions: Where `growth` ends.
    """

    sessions: int = 1000
    rounds: int = 20
    fresh_rounds: int = 5
    seconds: float = 0.4
    warm_up: float = 0.1
    most_sessions: int = 16_000

    def quick(self) -> "Plan":
        """Return a plan that shows whether everything works, and little else."""
        return self._replace(
            sessions=100, rounds=3, fresh_rounds=1, seconds=0.1, warm_up=0.02, most_sessions=400
        )
