"""What `import asgi_ws` gives: every public name, sorted, and nothing that is not needed."""

import ast
import configparser
import importlib
import inspect
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import asgi_ws
from tests.fakes import DEADLINE

ROOT = Path(__file__).parent.parent
# Names of the contract that every program may import from the front door; those of later issues join them.
PROMISED = """
    AlreadySubscribed BadRequest Binary Broadcaster Forbidden Hub HubError HubMiddleware Identity LimitExceeded
    NotFound NotRunning Position RateLimited Router Session SettingsError Timeout TooLarge Unauthorized
    Unavailable Undeclared WrongLoop get_hub
"""


def run(code):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=6 * DEADLINE,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestNames:
    def test_are_sorted_and_each_once(self):
        assert list(asgi_ws.__all__) == sorted(set(asgi_ws.__all__))

    @pytest.mark.parametrize("name", asgi_ws.__all__)
    def test_can_be_imported(self, name):
        assert getattr(asgi_ws, name) is not None

    def test_all_that_the_door_imports_is_public_and_nothing_else(self):
        tree = ast.parse(Path(asgi_ws.__file__).read_text("utf-8"))
        imported = [
            a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names
        ]
        assert sorted(imported) == sorted(asgi_ws.__all__)

    def test_what_the_contract_promises_is_there(self):
        assert set(PROMISED.split()) <= set(asgi_ws.__all__)

    def test_every_error_is_there(self):
        errors = importlib.import_module("asgi_ws.errors")
        public = {
            name
            for name, value in vars(errors).items()
            if inspect.isclass(value) and not name.startswith("_")
        }
        public.discard("ClassVar")
        assert public <= set(asgi_ws.__all__)
        assert all(issubclass(getattr(errors, name), asgi_ws.HubError) for name in public)

    def test_a_star_gives_the_same(self):
        names = json.loads(run("from asgi_ws import *; import json; print(json.dumps(sorted(dir())))"))
        assert set(asgi_ws.__all__) <= set(names)

    @pytest.mark.parametrize("name", sorted(set(asgi_ws.__all__) - {"__version__"}))
    def test_each_says_what_it_is(self, name):
        assert inspect.getdoc(getattr(asgi_ws, name)), f"{name} has no docstring"

    def test_the_package_is_typed(self):
        assert (Path(asgi_ws.__file__).parent / "py.typed").exists()


class TestErrors:
    REQUEST = asgi_ws.RequestError.__subclasses__()

    def test_each_code_of_the_contract_has_one(self):
        codes = "bad_request unauthorized forbidden not_found already_subscribed limit_exceeded rate_limited too_large"
        assert {error.code for error in self.REQUEST} == {*codes.split(), "unavailable", "timeout"}
        assert asgi_ws.RequestError.code == "internal"

    def test_those_that_never_leave_the_process_are_no_answers(self):
        for error in (asgi_ws.Undeclared, asgi_ws.NotRunning, asgi_ws.WrongLoop, asgi_ws.SettingsError):
            assert issubclass(error, asgi_ws.HubError)
            assert not issubclass(error, asgi_ws.RequestError)
        assert issubclass(asgi_ws.Undeclared, LookupError)
        assert issubclass(asgi_ws.SettingsError, ValueError)

    def test_some_say_more(self):
        assert asgi_ws.RateLimited("slow down", retry_after=1.5).retry_after == 1.5
        assert asgi_ws.RateLimited().retry_after is None
        assert asgi_ws.Unavailable("away", maybe_published=True).maybe_published
        assert not asgi_ws.Unavailable().maybe_published
        assert str(asgi_ws.Unavailable("away")) == "away"


class TestImporting:
    def test_needs_no_optional_package_and_starts_nothing(self):
        code = (
            "import sys, threading, asgi_ws, json\n"
            "asgi_ws.Hub()\n"
            "print(json.dumps([sorted({name.split('.')[0] for name in sys.modules}), threading.active_count()]))"
        )
        modules, threads = json.loads(run(code))
        for name in (
            "uvicorn",
            "click",
            "websockets",
            "psutil",
            "pydantic",
            "fastapi",
            "prometheus_client",
            "uvloop",
        ):
            assert name not in modules
        assert threads == 1

    def test_works_where_the_optional_packages_are_not_installed(self):
        code = (
            "import sys\n"
            "class Missing:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in {'uvicorn', 'click', 'websockets', 'psutil', 'uvloop', 'httptools'}:\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Missing())\n"
            "import asyncio, asgi_ws\n"
            "async def main():\n"
            "    async with asgi_ws.Hub() as hub:\n"
            "        print(await hub.broadcast('tick', 1))\n"
            "asyncio.run(main())"
        )
        assert run(code).startswith("Position(")

    def test_logs_and_prints_nothing(self):
        assert run("import asgi_ws; asgi_ws.Hub()") == ""


class TestVersion:
    def test_is_one(self):
        assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", asgi_ws.__version__)
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        declared = setup["metadata"]["version"]
        assert declared in {"attr: asgi_ws.version.__version__", asgi_ws.__version__}

    def test_is_that_of_the_changelog(self):
        changelog = ROOT / "CHANGELOG.md"
        if not changelog.exists():
            pytest.skip("no changelog yet")
        versions = re.findall(r"^## \[?(\d+\.\d+\.\d+[^\]\s]*)", changelog.read_text("utf-8"), re.MULTILINE)
        if not versions:
            pytest.skip("nothing is released yet")
        assert versions[0] == asgi_ws.__version__

    def test_is_that_of_the_distribution(self):
        try:
            installed = metadata.version("asgi-ws-hub")
        except metadata.PackageNotFoundError:
            pytest.skip("not installed")
        assert installed == asgi_ws.__version__
