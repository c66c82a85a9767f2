"""Our WebSocket class for uvicorn: `uvicorn app:app --ws asgi_ws.server:WebSocketProtocol`."""

from asgi_ws.server.protocol import WebSocketProtocol

__all__ = ["WebSocketProtocol"]
