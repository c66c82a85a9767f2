"""What the generator asks of a rival's process: one line of JSON each, answered by one line."""

import msgspec

from benchmarks.message import SIZE


class Order(msgspec.Struct, kw_only=True):
    """Publish `turns` times `per_turn` messages: one turn when the last is done, or `rate` a second.

    Without turns, nothing is published: it is asked for a report.

    Attributes:
        first: The number of the first message; they count up.
        channels: 0: everything goes to `broadcast`. Else to the channels `c:0`, `c:1`, ..: a turn's
            messages all have the turn's number and go to neighbouring channels, the next turn's to the
            next ones, so that a session with one channel in each neighbourhood hears each number once.
    """

    first: int = 0
    turns: int = 1
    per_turn: int = 1
    rate: float = 0.0
    size: int = SIZE
    channels: int = 0


class Report(msgspec.Struct):
    """What a rival itself knows of deliveries that it gave up."""

    dropped: int = 0
    slow: int = 0
