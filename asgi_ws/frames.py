"""WebSocket frames as a server sends them: unmasked, so that the same bytes serve every client."""

import struct

# https://www.rfc-editor.org/rfc/rfc6455#section-5.2: FIN and the opcode.
TEXT = 0x81
BINARY = 0x82

_medium = struct.Struct("!BBH").pack
_long = struct.Struct("!BBQ").pack


def header(opcode: int, length: int) -> bytes:
    """Return what stands before a payload of `length` bytes."""
    if length < 126:
        return bytes((opcode, length))
    return _medium(opcode, 126, length) if length < 65536 else _long(opcode, 127, length)
