"""The docs say what the code says: tables are in step, names exist, links lead somewhere."""

import importlib.machinery
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.routing import Route, WebSocketRoute

import asgi_ws
from asgi_ws import Hub, cli, endings, errors, messages, settings

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {path.name: path.read_text() for path in sorted(ROOT.glob("*.md"))} | DOCS
PATHS = {path.name: path for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")}

FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: str) -> list[str]:
    return [block["text"] for block in FENCED.finditer(page) if block["language"] == "python"]


def prose(page: str) -> str:
    """What people have written: no code, nothing generated."""
    return FENCED.sub("", re.sub(r"<!-- generated: .*?<!-- end -->", "", page, flags=re.DOTALL))


@pytest.fixture
def script():
    """`scripts/docs` as a module: it has no suffix."""
    loader = importlib.machinery.SourceFileLoader("scripts_docs", str(ROOT / "scripts/docs"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


# The generated parts.


def test_the_generated_parts_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_check_names_the_page_that_differs_and_writing_puts_it_right(script, tmp_path, monkeypatch, capsys):
    pages = {path: path.read_text() for path in script.PAGES}
    copies = [tmp_path / "-".join(path.relative_to(script.ROOT).parts) for path in pages]
    for copy, text in zip(copies, pages.values(), strict=True):
        copy.write_text(text.replace("already_subscribed", "subscribed_already"))
    monkeypatch.setattr(script, "PAGES", copies)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "constant", lambda name: "0")  # what is measured here is not these
    monkeypatch.setattr(script, "parsed", dict)
    assert script.main(check=True) == 1
    assert "protocol.md is not what the code says" in capsys.readouterr().err
    assert script.main(check=False) == 0
    assert "| `already_subscribed` |" in (tmp_path / "docs-protocol.md").read_text()
    assert script.main(check=True) == 0


def test_a_field_that_nothing_explains_is_refused(script, monkeypatch):
    monkeypatch.delitem(script.FIELDS, "session")
    with pytest.raises(SystemExit, match="FIELDS lacks session"):
        script.main(check=True)


def test_an_explanation_of_no_field_is_refused(script, monkeypatch):
    monkeypatch.setitem(script.FIELDS, "welcome.colour", "green")
    with pytest.raises(SystemExit, match=r"FIELDS need no longer have welcome\.colour"):
        script.main(check=True)


def test_a_mark_without_a_writer_is_refused(script, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: nothing -->\n<!-- end -->\n")
    monkeypatch.setattr(script, "PAGES", [*script.PAGES, page])
    with pytest.raises(SystemExit, match="the pages need no longer have nothing"):
        script.main(check=True)


# Everything is said.


@pytest.mark.parametrize("setting", settings.describe({}), ids=lambda setting: setting.name)
def test_every_setting_is_explained(setting):
    row = f"| `{setting.variable}` | `{setting.default}` |"
    assert row in DOCS["settings.md"]


@pytest.mark.parametrize(
    "kind", get_args(messages.Request | messages.Message), ids=lambda kind: kind.__name__
)
def test_every_message_has_its_section(kind):
    name = kind.__struct_config__.tag
    assert re.search(rf"^### .*\b{name}\b", DOCS["protocol.md"], re.MULTILINE)


# What a reader cannot bring about by typing.
NEVER_SHOWN = {
    "gap": "comes to who reads slowly",
    "leave": "comes to who stays, when another has been gone for some seconds",
    "ping": "comes after 25 seconds",
}


def exchanges() -> list[tuple[str, dict[str, Any]]]:
    """What the sessions of the protocol's page send and receive, which `test_readme.py` types: (`>` or `<`, message)."""
    found: list[tuple[str, dict[str, Any]]] = []
    for block in FENCED.finditer(DOCS["protocol.md"]):
        for line in block["text"].splitlines() if block["language"] == "console" else ():
            if line[:2] in {"> ", "< "}:
                message = json.loads(line[2:])
                found += [(line[0], one) for one in (message if isinstance(message, list) else [message])]
    return found


def test_every_request_is_shown_with_its_answer():
    shown = exchanges()
    for kind in get_args(messages.Request):
        assert (">", kind.__struct_config__.tag) in {(side, one["type"]) for side, one in shown}, kind
    for number, (side, asked) in enumerate(shown):
        if side == ">" and "ref" in asked:
            later = [one for side, one in shown[number:] if side == "<"]
            assert any(one.get("ref") == asked["ref"] for one in later), asked


def test_every_message_is_shown_unless_it_cannot_be():
    heard = {one["type"] for side, one in exchanges() if side == "<"}
    tags = {kind.__struct_config__.tag for kind in get_args(messages.Message)}
    assert tags - heard == NEVER_SHOWN.keys()


def test_every_close_code_is_in_the_table():
    codes = {ending.code for ending in vars(endings).values() if isinstance(ending, endings.Ending)}
    for code in codes:
        assert f"\n| {code} |" in DOCS["protocol.md"]


def test_every_error_code_is_in_the_table():
    for kind in (errors.RequestError, *errors.RequestError.__subclasses__()):
        assert f"\n| `{kind.code}` |" in DOCS["protocol.md"]


def test_the_readme_lists_the_paths_that_are_served():
    router = Hub(live=True)._routes._router
    served = {route.path for route in router.routes if isinstance(route, Route | WebSocketRoute)}
    table = PAGES["README.md"].partition("\n## Endpoints\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(/\w+)` \|", table, re.MULTILINE)) == served


def test_every_script_is_explained():
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file()}
    for name in scripts:
        assert f"`scripts/{name}" in PAGES["CONTRIBUTING.md"]


def test_the_times_of_coming_back_are_those_of_the_code():
    (_, soon), (least, most) = endings.AT_ONCE, endings.BACKOFF
    assert f"between {least:g} and {most:g} seconds" in DOCS["protocol.md"]
    assert f"up to {soon:g} second." in DOCS["protocol.md"]


def test_the_flags_for_uvicorn_are_those_of_serve():
    for name, value in cli.SAFE.items():
        shown = str(value).lower() if isinstance(value, bool | int) else value
        assert f"--{name.replace('_', '-')} {shown}" in DOCS["deploying.md"]


# What is said is there.


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_exist(page):
    known = {one.variable for one in settings.describe({})}
    named = set(re.findall(r"ASGI_WS_(?!TEST_)[A-Z_]*[A-Z]", PAGES[page]))
    assert {name.removesuffix("_FILE") for name in named} <= known


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_named_exist(page):
    for name in re.findall(r"\bscripts/(\w+)", PAGES[page]):
        assert (ROOT / "scripts" / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile_and_import_what_exists(page):
    for block in python_blocks(PAGES[page]):
        compile(block, page, "exec", dont_inherit=True)
        for names in re.findall(r"^from asgi_ws import (.+)$", block, re.MULTILINE):
            for name in names.split(","):
                assert name.strip() in asgi_ws.__all__


@pytest.mark.parametrize("page", PAGES)
def test_keywords_of_a_hub_in_the_text_are_settings(page):
    known = {one.name for one in settings.describe({})} | set(inspect.signature(Hub).parameters)
    for call in re.findall(r"\bHub\(([^()]+)\)", PAGES[page]):
        assert set(re.findall(r"\b(\w+)=", call)) <= known


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (PATHS[page].parent / path).resolve() if path else PATHS[page]
        assert there.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{page} links to {target}"


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_sentence_has_a_line_of_its_own(page):
    for line in prose(PAGES[page]).splitlines():
        if line and not line.startswith(("#", "|", "*", "<", ">")) and not re.match(r"\d", line):
            assert not re.search(r"[a-z)`]\. [A-Z]", line), line


def test_the_changelog_has_the_version_of_the_package():
    assert re.search(rf"^## \[?{re.escape(asgi_ws.__version__)}\]? ", PAGES["CHANGELOG.md"], re.MULTILINE)
