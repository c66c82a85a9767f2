"""How much is measured."""

from typing import NamedTuple


class Plan(NamedTuple):
    """Each rival is measured `rounds` times, in turn with the others, for `seconds` after a warm-up."""

    sessions: int = 1000
    rounds: int = 5
    seconds: float = 2.0
    warm_up: float = 0.5
    most_sessions: int = 16_000

    def quick(self) -> "Plan":
        """Return a plan that shows whether everything works, and little else."""
        return self._replace(sessions=100, rounds=2, seconds=0.3, warm_up=0.1, most_sessions=400)
