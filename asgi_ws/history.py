"""What a channel has kept, for who asks instead of resuming."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from asgi_ws.channels import Channel
from asgi_ws.errors import BadRequest
from asgi_ws.node import Node
from asgi_ws.publication import Position, Publication


class Page(NamedTuple):
    """A stretch of a channel, in order.

    Attributes:
        position: The one after the last publication, or the channel's top where there is none.
        recovered: With a position to begin after: whether everything after it is still kept. If not, there
            are no publications. Without one: `None`.
    """

    position: Position
    publications: Sequence[Publication]
    recovered: bool | None

    def within(self, max_bytes: int) -> "Page":
        """Return as much of it as fits into so many bytes, one publication at least.

        After a position these are the first, and a next page goes on from there; else they are the last.
        """
        if self.recovered:
            kept = _fitting(self.publications, max_bytes)
            return self if kept == len(self.publications) else self._first(kept)
        kept = _fitting(self.publications[::-1], max_bytes)
        return self._replace(publications=self.publications[len(self.publications) - kept :])

    def _first(self, count: int) -> "Page":
        return self._replace(
            publications=self.publications[:count], position=self.publications[count - 1].position
        )

    def answer(self, events: Sequence[Any]) -> dict[str, Any]:
        """Return it as clients and applications have it, its events in a form of their choice."""
        page: dict[str, Any] = {"epoch": self.position.epoch, "offset": self.position.offset}
        if self.recovered is not None:
            page["recovered"] = self.recovered
        return {**page, "events": events}


async def read(node: Node, channel: Channel, name: str, after: Position | None, limit: int) -> Page:
    """Return the latest publications of a channel, or the first after a position; at most `limit`.

    Raises:
        BadRequest: The channel has no history.
        Unavailable: The broker is away.
    """
    broadcaster = node.broadcaster
    if not channel.retention.size or "history" not in broadcaster.features:
        raise BadRequest(f"expected a channel with history, got {name!r}")
    if after is None:
        every = await broadcaster.history(name, None, channel.retention, None)
        return Page(every.position, every.publications[-limit:], None)
    found = await broadcaster.history(name, after, channel.retention, limit)
    return Page(found.position, found.publications, found.complete)


def _fitting(publications: Sequence[Publication], max_bytes: int) -> int:
    """Return how many of the first fit, one at least if there is any."""
    for count, publication in enumerate(publications):
        max_bytes -= publication.size
        if count and max_bytes < 0:
            return count
    return len(publications)
