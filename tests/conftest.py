import logging
import os

import pytest

# A server under test is found by its port, never by the environment of whoever runs the tests.
for _name in [name for name in os.environ if name.startswith("ASGI_WS_") and "_TEST_" not in name]:
    del os.environ[_name]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def quiet_servers():
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
