"""When an event loop has nothing left to do."""

import asyncio

TURNS = 1000


async def settle() -> None:
    """Let the running loop go on until only timers, sockets and threads are waited for.

    At most 1,000 turns: an app may never come to rest. uvloop does not say what it has to do, so there it
    is always 1,000.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", True)
    quiet = 0
    for _ in range(TURNS):
        await asyncio.sleep(0)
        quiet = 0 if ready else quiet + 1
        if quiet == 2:  # in between it has looked at its sockets, and at what threads have asked for
            return
