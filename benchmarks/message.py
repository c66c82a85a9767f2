"""The message that every rival delivers, and how a client finds its number and its time in it."""

import time
from typing import Any

# In front of eight digits that count messages, a dash, and eighteen digits of CLOCK_MONOTONIC in ns. It
# has neither quotes nor braces, so it is found in whatever envelope a rival wraps the message.
MARK = b"seq-"
NUMBER = slice(len(MARK), len(MARK) + 8)
STAMP = slice(NUMBER.stop + 1, NUMBER.stop + 19)

# An order that was shipped, as JSON 155 bytes.
SIZE = 155
_BARE = 116

BROADCAST = "broadcast"


def message(number: int, size: int = SIZE) -> dict[str, Any]:
    """Return the data of one publication; as compact JSON it has `size` bytes."""
    return {
        "id": f"seq-{number:08d}-{time.monotonic_ns():018d}",
        "order": 48151,
        "status": "shipped",
        "total": "99.90",
        "currency": "EUR",
        "note": "x" * (size - _BARE),
    }
