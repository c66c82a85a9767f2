"""A channel's state as one session is given it, and where its events go on from there."""

import asyncio
from typing import Any, NamedTuple

from msgspec import UNSET, UnsetType

from asgi_ws.channels import Channel
from asgi_ws.codecs import encode_data
from asgi_ws.errors import Unavailable
from asgi_ws.node import Join, Node
from asgi_ws.publication import Position, Publication, Slow
from asgi_ws.session import Session
from asgi_ws.topic import Subscription


class Carried(NamedTuple):
    """A snapshot as a message carries it: its `data`, its `binary`, and of which position it is."""

    data: Any = UNSET
    binary: bool | UnsetType = UNSET
    position: Position | None = None


async def take(session: Session, channel: Channel, params: dict[str, Any], max_bytes: int) -> Carried:
    """Ask the application for a channel's state; an empty one where it gives none.

    Raises:
        TypeError: JSON cannot carry it.
        TooLarge: It is over `max_bytes`.
        Exception: Whatever the application's function raises.
    """
    snapshot = await channel.state_for(session, params)
    if snapshot is None:
        return Carried()
    data, binary = encode_data(snapshot.data, max_bytes)
    return Carried(session.codec.carry(data, binary=binary), binary or UNSET, snapshot.position)


class Patient(Subscription):
    """A subscription that can wait, while it is joining, until its channel has come to a position here."""

    __slots__ = ("_goal", "_reached")

    def __init__(self, session: Session, channel: str, slow: Slow = "resync") -> None:
        super().__init__(session, channel, slow)
        self._goal: Position | None = None
        self._reached: asyncio.Event | None = None

    def hold(self, publication: Publication | Position) -> None:
        super().hold(publication)
        if self._reached is not None and self._has_come:
            self._reached.set()

    async def reach(self, goal: Position) -> None:
        """Wait until what is held back goes as far as a position.

        Raises:
            Unavailable: It goes elsewhere: more came than can be held back, or another epoch.
        """
        self._goal = goal
        if not self._has_come:
            self._reached = asyncio.Event()
            await self._reached.wait()
        if self.overrun or self.held[-1].epoch != goal.epoch:
            raise Unavailable("expected the channel to go on while subscribing, got a break; try again")

    @property
    def _has_come(self) -> bool:
        assert self._goal is not None
        if self.overrun:
            return True
        last = self.held[-1] if self.held else None
        return last is not None and (last.epoch != self._goal.epoch or last.offset >= self._goal.offset)


async def align(node: Node, channel: Channel, subscription: Subscription, join: Join, state: Carried) -> Join:
    """Return what a subscription begins with that is given a state: exactly what is not in it.

    Raises:
        Unavailable: What follows the state is no longer kept, or has not come here in order.
    """
    here, there = join.position, state.position
    if here is None or there is None or there == here:
        return join
    assert isinstance(subscription, Patient)
    if there.epoch == here.epoch and there.offset > here.offset:
        await subscription.reach(there)
        return join._replace(position=there)
    found = await node.stretch(subscription.channel, there, channel.retention)
    if found is None:
        raise Unavailable("expected a snapshot of a position that is still kept, got an older one; try again")
    missed, more = found
    if missed and missed[-1].offset > here.offset:
        await subscription.reach(missed[-1].position)
    return join._replace(position=there, missed=missed, more=more)
