"""The examples that are one file each, on real servers."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.servers import eventually, receive, serve

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def until(ws: Any, kind: str, **fields: Any) -> dict[str, Any]:
    """The next message of a type with these fields."""
    while True:
        message = await receive(ws)
        if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
            return message


async def ask(ws: Any, **request: Any) -> dict[str, Any]:
    await ws.send(json.dumps({"ref": 1, **request}))
    while (message := await receive(ws)).get("ref") != 1:
        pass
    return message


class TestPower:
    @pytest.mark.parametrize("server", ["fast", "uvicorn"])
    async def test_two_clients_share_one_measurement_which_ends_with_the_last(self, server):
        power = example("power")
        with serve(power.app, server) as served:
            url = "/ws/power?module=4&interval=0.05"
            async with served.connect(url) as one, served.connect(url) as two:
                for ws in (one, two):
                    subscribed = await until(ws, "subscribed")
                    assert subscribed["channel"] == "power?interval=0.05&module=4"
                    event = await until(ws, "event")
                    assert (event["event"], event["data"]["module"]) == ("power", 4)
                assert served.get("/ws/status").json()["active_sources"] == 1
            await eventually(lambda: served.get("/ws/status").json()["active_sources"] == 0)

    @pytest.mark.parametrize(
        ("query", "why"), [("module=9", "module"), ("module=4&interval=0.001", "interval")]
    )
    async def test_what_the_meter_cannot_do_is_refused_with_the_reason(self, query, why):
        power = example("power")
        with serve(power.app, "fast") as served:
            async with served.connect("/ws/stream") as ws:
                answer = await ask(ws, type="subscribe", channel=f"power?{query}")
                assert answer["type"] == "error"
                assert why in answer["message"]


class TestTasks:
    @pytest.fixture
    def tasks(self, monkeypatch):
        module = example("tasks")
        monkeypatch.setattr(module, "PAUSE", 0.01)
        return module

    def start(self, served: Any, user: str) -> int:
        return served.post("/tasks", headers={"authorization": f"Bearer {user}"}).json()["task_id"]

    def connect(self, served: Any, user: str, query: str = "") -> Any:
        return served.connect(f"/ws/stream{query}", additional_headers={"authorization": f"Bearer {user}"})

    async def test_an_owner_sees_the_progress_and_the_administrator_all_tasks(self, tasks):
        with serve(tasks.app, "fast") as served:
            async with self.connect(served, "admin", "?channel=admin:tasks") as admin:
                await until(admin, "subscribed", channel="admin:tasks")
                task = self.start(served, "ann")
                assert (await until(admin, "event", event="started"))["data"]["owner"] == "ann"
                async with self.connect(served, "ann", f"?channel=task:{task}") as ann:
                    begun = await until(ann, "subscribed", channel=f"task:{task}")
                    ended = await until(ann, "event", event="ended")
                    assert (ended["data"]["status"], ended["data"]["step"]) == ("done", tasks.STEPS)
                    assert begun["data"]["task_id"] == task
                assert (await until(admin, "event", event="ended"))["data"]["status"] == "done"

    async def test_it_can_be_cancelled_by_its_owner_and_by_nobody_else(self, tasks, monkeypatch):
        monkeypatch.setattr(tasks, "PAUSE", 60)
        with serve(tasks.app, "fast") as served:
            task = self.start(served, "ann")
            async with self.connect(served, "ann") as ann, self.connect(served, "bob") as bob:
                for ws in (ann, bob):
                    await until(ws, "welcome")
                call = {"type": "call", "params": {"task_id": task}}
                assert (await ask(bob, command="cancel_task", **call))["code"] == "not_found"
                assert (await ask(bob, type="subscribe", channel=f"task:{task}"))["code"] == "not_found"
                assert (await ask(ann, command="task_status", **call))["data"]["status"] == "running"
                assert (await ask(ann, command="cancel_task", **call))["data"]["status"] == "cancelled"
                wrong = await ask(ann, type="call", command="cancel_task", params={"task_id": "one"})
                assert (wrong["code"], "task_id" in wrong["message"]) == ("bad_request", True)
