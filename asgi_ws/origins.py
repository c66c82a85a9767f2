"""Which web pages may connect: a browser sends cookies along to any site, and CORS does not apply."""

from collections.abc import Iterable
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def allowed(origin: str | None, host: str, origins: Iterable[str]) -> bool:
    """Return whether a page of `origin` may connect to `host` (the header, with its port).

    The same origin always may; where the host is loopback, so may any loopback origin. No origin is no
    browser, and allowed; `null`, a sandboxed page or a file, is not. `origins` adds exact ones,
    `https://*.example.com` for subdomains, or `*` for any.
    """
    if origin is None:
        return True
    origin = origin.lower()
    try:
        here = _address(f"//{host}", urlsplit(origin).scheme)
        there = _address(origin, urlsplit(origin).scheme)
    except ValueError:  # a port that is none
        return False
    same = there[0] is not None and (there == here or (_is_loopback(there[0]) and _is_loopback(here[0])))
    return same or listed(origin, origins)


def listed(origin: str | None, origins: Iterable[str]) -> bool:
    """Return whether a page of `origin` is one of `origins`, and no other will do; no page at all will."""
    return origin is None or any(_matches(origin.lower(), pattern.lower()) for pattern in origins)


def _address(url: str, scheme: str) -> tuple[str | None, int | None]:
    # TLS may end at a proxy that passes Host on: a missing port is the default of the origin's scheme.
    parts = urlsplit(url)
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme)


def _is_loopback(host: str | None) -> bool:
    return host in {"localhost", "::1"} or (host is not None and _is_ipv4_loopback(host))


def _is_ipv4_loopback(host: str) -> bool:
    numbers = host.split(".")
    return len(numbers) == 4 and numbers[0] == "127" and all(n.isdecimal() for n in numbers)


def _matches(origin: str, pattern: str) -> bool:
    if "://*." not in pattern:
        return pattern in {"*", origin} and origin != "null"
    scheme, _, rest = pattern.partition("://*")
    return origin.startswith(f"{scheme}://") and origin.endswith(rest) and len(origin) > len(pattern) - 1
