"""Which pages may connect: their own server's, a developer's, and those that are named; no others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws.origins import allowed

HOSTS = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){1,2}", fullmatch=True)
PORTS = st.none() | st.integers(1, 65_535)


def with_port(host, port):
    return host if port is None else f"{host}:{port}"


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "example.com"),
        (None, ""),
        ("https://example.com", "example.com"),
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com:443"),
        ("http://example.com", "example.com:80"),
        ("https://example.com:443", "example.com"),
        ("https://example.com:8443", "example.com:8443"),
        ("HTTPS://EXAMPLE.com", "example.COM"),
        ("http://[2001:db8::1]:8000", "[2001:db8::1]:8000"),
        # Loopback is one machine, whatever it is called and whatever the port: `vite` beside `uvicorn`.
        ("http://localhost:5173", "localhost:8000"),
        ("http://localhost:5173", "127.0.0.1:8000"),
        ("http://127.0.0.1:5173", "localhost"),
        ("http://127.9.9.9", "[::1]:8000"),
        ("http://[::1]:5173", "127.0.0.1:8000"),
    ],
)
def test_the_same_origin_may_without_being_named(origin, host):
    assert allowed(origin, host, ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.com", "example.com"),
        ("https://example.com.evil.com", "example.com"),
        ("https://sub.example.com", "example.com"),
        ("https://example.com", "sub.example.com"),
        ("https://example.com:8443", "example.com"),
        ("https://example.com", "example.com:8443"),
        ("http://example.com", "example.com:443"),  # behind TLS a page of http is another
        ("https://example.com", "example.com:80"),
        ("https://example.com", ""),
        ("null", "example.com"),
        ("null", "localhost:8000"),
        ("null", "null"),
        ("", "example.com"),
        ("", ""),
        ("file://", "localhost"),
        ("https://", "example.com"),
        ("http://localhost:5173", "example.com"),
        ("https://example.com", "localhost:8000"),
        ("http://localhost.evil.com", "localhost:8000"),
        ("http://127.0.0.1.evil.com", "localhost:8000"),
        ("http://1270.0.1", "localhost:8000"),
        ("http://127.0.0", "localhost"),
        ("http://127.a.b.c", "localhost"),
        ("http://example.com:port", "example.com"),
        ("http://example.com:99999", "example.com"),
        ("http://[", "example.com"),
        ("http://example.com", "[::1"),
        ("http://example.com", "example.com:x"),
    ],
)
def test_any_other_may_not(origin, host):
    assert not allowed(origin, host, ())


@pytest.mark.parametrize(
    ("origin", "pattern"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://SHOP.example", "https://shop.EXAMPLE"),
        ("https://a.example.com", "https://*.example.com"),
        ("https://a.b.example.com", "https://*.example.com"),
        ("https://a.example.com:8443", "https://*.example.com:8443"),
        ("https://whatever", "*"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_what_is_named_may(origin, pattern):
    assert allowed(origin, "host", [pattern])
    assert allowed(origin, "host", ["https://other", pattern])


@pytest.mark.parametrize(
    ("origin", "pattern"),
    [
        ("http://shop.example", "https://shop.example"),
        ("https://shop.example:8443", "https://shop.example"),
        ("https://shop.example.evil", "https://shop.example"),
        ("https://example.com", "https://*.example.com"),
        ("https://.example.com", "https://*.example.com"),
        ("https://aexample.com", "https://*.example.com"),
        ("http://a.example.com", "https://*.example.com"),
        ("https://a.example.com.evil", "https://*.example.com"),
        ("https://a.example.com:8443", "https://*.example.com"),
        ("null", "*"),
        ("null", "null"),
    ],
)
def test_what_only_looks_like_it_may_not(origin, pattern):
    assert not allowed(origin, "host", [pattern])


@settings(deadline=None)
@given(st.sampled_from(["http", "https"]), HOSTS, PORTS)
def test_a_page_of_the_server_may_always(scheme, host, port):
    assert allowed(f"{scheme}://{with_port(host, port)}", with_port(host, port), ())


@settings(deadline=None)
@given(st.sampled_from(["http", "https"]), HOSTS, HOSTS, PORTS)
def test_a_page_of_another_host_may_only_if_it_is_named(scheme, host, other, port):
    origin = f"{scheme}://{with_port(other, port)}"
    assert allowed(origin, host, ()) is (host == other and port in {None, {"http": 80, "https": 443}[scheme]})
    assert allowed(origin, host, [origin])


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_whatever_comes_is_answered(origin, host, patterns):
    assert allowed(origin, host, patterns) in {True, False}
