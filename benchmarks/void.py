"""A round that does not count."""


class Void(Exception):
    """A delivery was missing, doubled or out of order, a session was lost, or the server gave up."""
