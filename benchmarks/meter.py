"""What a stretch of time cost: the server's CPU, and whether anything but the server was in the way."""

import time
from typing import Self

from benchmarks.server import Server


class Meter:
    """Measures from entering to leaving.

    Attributes:
        cpu: Seconds of CPU that the server used.
        wall: Seconds that passed.
        busy, generator: The share of them that the server and this process were working: whoever is at
            1 was the bottleneck.
        stolen: The share that the server was ready to work, but some other program had its core.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.cpu = self.wall = self.busy = self.generator = self.stolen = 0.0

    def __enter__(self) -> Self:
        self._begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu, own, waited = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        self.cpu, self.wall = cpu, wall
        self.busy, self.generator, self.stolen = cpu / wall, own / wall, waited / wall

    def shares(self) -> dict[str, float]:
        """Return what every sample says besides its own numbers."""
        return {"busy": self.busy, "generator": self.generator, "stolen": self.stolen}

    def _now(self) -> tuple[float, float, float, float]:
        return time.monotonic(), self._server.cpu(), time.process_time(), self._server.waited()
