"""The rival's end of the control line: obeys orders to publish. A rival whose line breaks ends at once."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from benchmarks.message import BROADCAST, message
from benchmarks.order import Order, Report

PORT = int(os.environ.get("BENCH_PORT", "0"))

_QUIET_TURNS, _QUIET_SECONDS = 8, 0.0001

Publish = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Publishes data to a channel, as an application of this rival would."""


@contextlib.asynccontextmanager
async def obeying(publish: Publish, report: Callable[[], Report] = Report) -> AsyncIterator[None]:
    """Obey the generator until the block ends; the shape of a lifespan."""
    task = asyncio.get_running_loop().create_task(obey(publish, report))
    yield
    task.cancel()


async def obey(publish: Publish, report: Callable[[], Report] = Report) -> None:
    """Obey the generator until its end of the line is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["BENCH_CONTROL"]))
    async for line in reader:
        order = msgspec.json.decode(line, type=Order)
        await _carry_out(order, publish)
        writer.write(b"{}\n" if order.turns else msgspec.json.encode(report()) + b"\n")
    os._exit(0)


async def _carry_out(order: Order, publish: Publish) -> None:
    begin = time.monotonic()
    for turn in range(order.turns):
        if order.rate:
            await asyncio.sleep(begin + turn / order.rate - time.monotonic())
        for number, channel in _addresses(order, turn):
            await publish(channel, message(number, order.size))
        await _rest()


async def _rest() -> None:
    """Let a rival finish the turn, also where that takes it several of the loop's: tasks, slices.

    Else what is published next joins what waits, and one write counts as several deliveries.
    """
    quiet = 0
    while quiet < _QUIET_TURNS:
        begin = time.perf_counter()
        await asyncio.sleep(0)
        quiet = quiet + 1 if time.perf_counter() - begin < _QUIET_SECONDS else 0


def _addresses(order: Order, turn: int) -> list[tuple[int, str]]:
    if not order.channels:
        first = order.first + turn * order.per_turn
        return [(first + n, BROADCAST) for n in range(order.per_turn)]
    number = order.first + turn
    first = number * order.per_turn % order.channels
    return [(number, f"c:{first + n}") for n in range(order.per_turn)]
