"""For the tests of your own app: clients in memory, time that is moved by hand, links that stall and break.

Nothing in `asgi_ws` imports this, and it needs neither a server nor pytest.
"""

from asgi_ws.testing.cable import Closed, Denied
from asgi_ws.testing.client import Client, Failed, connect
from asgi_ws.testing.hours import Clock, hub_time
from asgi_ws.testing.rest import settle
from asgi_ws.testing.running import Running, running

__all__ = [
    "Client",
    "Clock",
    "Closed",
    "Denied",
    "Failed",
    "Running",
    "connect",
    "hub_time",
    "running",
    "settle",
]
