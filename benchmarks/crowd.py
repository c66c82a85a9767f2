"""Many clients of one server."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Self

from benchmarks import frames
from benchmarks.client import Asker, Client, Listener, Opening
from benchmarks.dialects import Dialect
from benchmarks.order import Order
from benchmarks.server import Server
from benchmarks.tally import Tally
from benchmarks.void import Void

AT_ONCE = 64  # handshakes on their way
_RESET = struct.pack("ii", 1, 0)


class Crowd:
    """Clients, from the handshake to the end; they share a tally.

    Args:
        role: What a client is once it is ready.
        small: Whether to keep socket buffers small, here and, by a small segment size, at the server.
    """

    def __init__(
        self, server: Server, *, role: Callable[[Opening], Client] = Listener, small: bool = False
    ) -> None:
        self.server = server
        self.tally = Tally()
        self.clients: list[Client] = []
        self._dialect: Dialect = server.rival.dialect
        self._role = role
        self._small = small
        self._room = asyncio.Semaphore(AT_ONCE)
        self._next = 0
        self._answers: list[asyncio.Future[bytes]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.tally.fail("it is over")
        for client in self.clients:
            client.transport.abort()

    async def join(self, count: int, channels: Callable[[int], list[str]] = lambda _: []) -> None:
        """Connect clients and wait until all are ready.

        Args:
            channels: What the client of a number subscribes to, besides what it has anyway.

        Raises:
            Void: Some are not ready in time.
        """
        first = len(self.clients)
        self.tally.expect(count)
        connecting = asyncio.get_running_loop().create_task(
            self._connect_all([channels(number) for number in range(first, first + count)])
        )
        try:
            await self.tally.finish()
        finally:
            connecting.cancel()

    async def settle(self) -> None:
        """Wait until the server has nothing more to do for those who have joined."""
        await self.server.rest()
        self.tally.check()

    def order(self, **order: float) -> int:
        """Have messages published, and return how many deliveries are due for that."""
        wanted = Order(first=self._next, **order)  # type: ignore[arg-type]
        each = wanted.turns if wanted.channels else wanted.turns * wanted.per_turn
        self._next += each
        self.tally.expect(each * len(self.clients))
        self._answers.append(self.server.obey(wanted))
        return each * len(self.clients)

    async def finish(self, ahead: int = 0) -> None:
        """Wait until all that was ordered is delivered, or all but `ahead` deliveries.

        Raises:
            Void: Not everyone has heard everything, once and in order.
        """
        await self.tally.finish(ahead)
        if not ahead:
            answers, self._answers = self._answers, []
            if b"" in await asyncio.gather(*answers):
                raise Void("the server ended")

    async def hear(self, **order: float) -> None:
        """Have messages published, and wait until they are delivered."""
        self.order(**order)
        await self.finish()

    def stop_reading(self) -> None:
        for client in self.clients:
            client.transport.pause_reading()

    async def ask(self, seconds: float) -> None:
        """Have every client ask, again and again for a while, and wait for the last answers."""
        askers = [client for client in self.clients if isinstance(client, Asker)]
        self.tally.expect(len(askers))
        for asker in askers:
            asker.ask()
            asker.asking = True
        await asyncio.sleep(seconds)
        for asker in askers:
            asker.asking = False
        await self.tally.finish()

    async def _connect_all(self, subscriptions: list[list[str]]) -> None:
        try:
            for channels in subscriptions:
                await self._room.acquire()
                await self._connect(channels)
        except OSError as error:
            self.tally.fail(f"a session could not connect: {error}")

    async def _connect(self, channels: list[str]) -> None:
        opening = Opening(
            self.tally,
            self._dialect,
            request=frames.request(self.server.port, self._dialect.resource(channels)),
            awaited=self._dialect.ready + self._dialect.each * len(channels),
            welcome=self._room.release,
            ready=self._admit,
        )
        await asyncio.get_running_loop().create_connection(lambda: opening, sock=self._socket())

    def _admit(self, opening: Opening) -> Client:
        client = self._role(opening)
        opening.transport.set_protocol(client)
        self.clients.append(client)
        self.tally.take(1)
        return client

    def _socket(self) -> socket.socket:
        # A connect over loopback is done when it returns; a reset at the end leaves no TIME_WAIT behind.
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        connection.connect(("127.0.0.1", self.server.port))
        connection.setblocking(False)
        return connection
