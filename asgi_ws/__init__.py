"""The realtime layer for any ASGI app."""

__version__ = "0.1.0"
