"""What one session asks and what has to wait: one thing after another, each within `COMMAND_TIMEOUT`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from asgi_ws.answers import Ref, refuse
from asgi_ws.clock import Timer
from asgi_ws.errors import LimitExceeded, Timeout
from asgi_ws.messages import Message
from asgi_ws.run import Run
from asgi_ws.session import Session, State

logger = logging.getLogger("asgi_ws")

# What may wait while one is being done, per session and lane.
MAX_JOBS = 128
MAX_JOB_BYTES = 1 << 20


class Job(NamedTuple):
    """A request that may have to wait.

    Attributes:
        do: Does it, and returns the answer, if there is one.
        what: What it is called in the log.
        size: The bytes that it holds while it waits.
    """

    do: Callable[[], Awaitable[Message | None]]
    what: str
    size: int
    ref: Ref
    channel: str | None = None


class Lane:
    """Does the jobs of one session in order, one at a time, and sees that each is answered in time.

    A job that has run out of time is cancelled and answered; the next one begins when it has really ended.
    """

    __slots__ = ("_bytes", "_expired", "_run", "_session", "_task", "_timer", "_waiting")

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        self._waiting: list[Job] = []  # a list, for it is short, and mostly empty
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._expired = False

    def __repr__(self) -> str:
        return f"<Lane {len(self._waiting)} waiting, {self._bytes} bytes>"

    def put(self, job: Job) -> None:
        """Take a job, or answer that too many wait."""
        if self._waiting and not self._fits(job):
            most = f"{MAX_JOBS} requests and {MAX_JOB_BYTES} bytes"
            error = LimitExceeded(f"expected at most {most} to wait for their turn, got one more")
            self._fail(error, job)
            return
        self._waiting.append(job)
        self._bytes += job.size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def stop(self) -> None:
        """Cancel what is being done, and forget what waits: the session is gone."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def _fits(self, job: Job) -> bool:
        return len(self._waiting) < MAX_JOBS and self._bytes + job.size <= MAX_JOB_BYTES

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            # A session that is ending has nothing more to ask.
            while self._waiting and self._session.phase is State.OPEN:
                job = self._waiting.pop(0)
                self._bytes -= job.size
                await self._perform(job, task)
        finally:
            self._task = None

    async def _perform(self, job: Job, task: asyncio.Task[None]) -> None:
        self._wait(lambda: self._expire(job, task))
        error: BaseException | None = None
        answer: Message | None = None
        try:
            answer = await job.do()
        except Exception as raised:
            error = raised
        except asyncio.CancelledError as raised:
            # Cancelled are we by our timer, by `stop`; or what the application awaited was.
            if task.cancelling() > self._expired:
                raise
            error = raised
        finally:
            self._timer_off()
        if self._expired:
            self._expired = False
            task.uncancel()
        elif error is not None:
            self._fail(error, job)
        elif answer is not None:
            self._session.tell(answer)

    # Time. A function may swallow its cancellation, so the answer does not wait for it.

    def _wait(self, then: Callable[[], None]) -> None:
        self._timer = self._run.clock.call_later(self._run.settings.command_timeout, then)

    def _timer_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, job: Job, task: asyncio.Task[None]) -> None:
        self._expired = True
        seconds = self._run.settings.command_timeout
        self._fail(Timeout(f"expected an answer within {seconds:g} s, got none"), job)
        self._wait(lambda: self._complain(job))
        task.cancel()

    def _complain(self, job: Job) -> None:
        session = self._session.id
        logger.error(
            "%s of session %s was cancelled and goes on; what comes after it waits", job.what, session
        )

    def _fail(self, error: BaseException, job: Job) -> None:
        refuse(self._session, self._run.metrics, error, job.ref, job.channel)
