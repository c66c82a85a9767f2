"""This project on its own WebSocket class."""

import uvicorn

from benchmarks.control import PORT
from benchmarks.rivals.asgi_ws_stock import app

# The one place that says how it is switched on.
WS = "asgi_ws.server:WebSocketProtocol"

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning", ws=WS)
