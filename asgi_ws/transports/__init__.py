"""How bytes become a session: one module a transport, and the handshake they share."""
