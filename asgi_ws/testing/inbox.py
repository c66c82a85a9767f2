"""What a client has received and its test has not taken yet."""

import asyncio
import copy
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Received = dict[str, Any]

_SHOWN = 10  # messages in an error
_LONGEST = 200  # characters of each


class Inbox:
    """Messages that wait to be taken, and whoever waits for one.

    Args:
        timeout: Real seconds that a wait may take.
        error: Returns why nothing more comes, or `None`.
    """

    def __init__(self, timeout: float, error: Callable[[], BaseException | None]) -> None:
        self.messages: list[Received] = []
        self._timeout = timeout
        self._error = error
        self._changed = asyncio.Event()

    def put(self, message: Received) -> None:
        """Take in a message."""
        self.messages.append(message)
        self._changed.set()

    def look(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    async def take(self, matches: Callable[[Received], bool], what: str) -> Received:
        """Take the first message of a kind, as soon as there is one.

        Raises:
            AssertionError: There was none in time; or whatever has ended the connection.
        """

        def find() -> Received | None:
            found = next((number for number, one in enumerate(self.messages) if matches(one)), None)
            return None if found is None else self.messages.pop(found)

        return await self.until(find, what)

    async def until(self, find: Callable[[], T | None], what: str, *, ends: bool = False) -> T:
        """Wait until there is something; with `ends`, the end of the connection may be it.

        Raises:
            AssertionError: There was nothing in time; or whatever has ended the connection.
        """
        try:
            async with asyncio.timeout(self._timeout):
                while not (found := find()):
                    if not ends:
                        self._raise_if_ended(what)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"expected {what} within {self._timeout:g} s, got {listed(self.messages)}"
            ) from None
        return found

    def _raise_if_ended(self, what: str) -> None:
        error = self._error()
        if error is not None:
            error = copy.copy(error) if isinstance(error, AssertionError) else error
            error.add_note(f"expected {what}, got {listed(self.messages)}, and then the end")
            raise error


def listed(messages: Sequence[Received]) -> str:
    """Return messages as an error shows them."""
    if not messages:
        return "nothing"
    more = f" and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    return ", ".join(map(brief, messages[:_SHOWN])) + more


def brief(message: Mapping[str, Any]) -> str:
    """Return a message as JSON, shortened."""
    text = json.dumps(message, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def difference(expected: Any, actual: Any) -> str:
    """Return in which lines two values differ."""
    before, after = (
        json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=repr).splitlines()
        for value in (expected, actual)
    )
    changes = (line for line in difflib.ndiff(before, after) if not line.startswith("?"))
    return "\n".join(["- expected", "+ got", *changes])
