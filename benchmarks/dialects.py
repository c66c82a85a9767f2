"""How a client speaks with each rival, from the handshake to its first message."""

import re

from benchmarks.message import MARK


class Dialect:
    """A bare WebSocket: whoever is connected is subscribed; what is sent comes back.

    Attributes:
        path: What is asked for in the handshake.
        welcome, ready: After how many messages of the server's a client is welcome, and after how many
            it is ready: subscribed to everything, each channel of its URL being worth `each` messages.
        replies: Whether it answers deliveries, so that each must be read.
    """

    path = "/"
    welcome = ready = each = 0
    replies = False

    def resource(self, channels: list[str]) -> str:
        """Return the path and query that subscribe to channels, besides what a client has anyway."""
        query = "&".join(f"channel={channel}" for channel in channels)
        return f"{self.path}?{query}" if query else self.path

    def greeting(self) -> bytes:
        """Return what a client says first, once it is connected."""
        return b""

    def answer(self, _: bytes) -> bytes:
        """Return what a client answers to a message; most say nothing."""
        return b""

    def question(self, number: int) -> bytes:
        """Return a request of the smallest kind that is answered; `MARK` is in the answer."""
        return b"%b%08d" % (MARK, number)


class AsgiWs(Dialect):
    """`welcome`, then `subscribed` for `broadcast` and for each channel that the URL asks for."""

    path = "/ws/stream"
    welcome, ready, each = 1, 2, 1

    def question(self, number: int) -> bytes:
        return b'{"type":"ping","ref":"%b%08d"}' % (MARK, number)


class SocketIO(Dialect):
    """Engine.IO 4 and Socket.IO 5 over a WebSocket from the start.

    https://socket.io/docs/v4/engine-io-protocol/ and https://socket.io/docs/v4/socket-io-protocol/
    """

    path = "/socket.io/?EIO=4&transport=websocket"
    welcome = ready = 2  # the open packet, and the answer to our connect

    def answer(self, text: bytes) -> bytes:
        return {b"0": b"40", b"2": b"3"}.get(text[:1], b"")

    def question(self, number: int) -> bytes:
        return b'421["echo","%b%08d"]' % (MARK, number)


class PubSub(Dialect):
    """fastapi-websocket-pubsub: JSON-RPC both ways; each delivery is a call that the client answers."""

    path = "/pubsub"
    welcome = ready = 1
    replies = True
    _call = re.compile(rb'"call_id":\s*"([^"]+)"')

    def greeting(self) -> bytes:
        arguments = b'{"topics":["broadcast"]}'
        return b'{"request":{"method":"subscribe","arguments":%b,"call_id":"1"}}' % arguments

    def answer(self, text: bytes) -> bytes:
        call = self._call.search(text)
        if b'"request":{' not in text or call is None:
            return b""
        return b'{"response":{"result":null,"result_type":null,"call_id":"%b"}}' % call[1]


class Litestar(Dialect):
    """Litestar's own handler: one path a channel."""

    path = "/broadcast"
