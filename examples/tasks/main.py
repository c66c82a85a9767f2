"""Long tasks whose owners watch their progress, and can cancel them; an administrator sees them all.

    uvicorn main:app
    curl -X POST -H 'Authorization: Bearer ann' http://127.0.0.1:8000/tasks        → {"task_id": 1}
    wscat -H 'Authorization: Bearer ann' -c 'ws://127.0.0.1:8000/ws/stream?channel=task:1'
    > {"type":"call","ref":1,"command":"cancel_task","params":{"task_id":1}}

A token is the user's name here; put your own check in its place.
"""

import asyncio
from typing import Annotated, Literal

import msgspec
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from asgi_ws import Forbidden, Hub, Identity, NotFound, Session, Unauthorized

ADMIN = "admin"
STEPS = 20
PAUSE = 0.25  # seconds of work a step


class Task(msgspec.Struct):
    """What is known of a task."""

    task_id: int
    owner: str
    status: Literal["running", "done", "cancelled"] = "running"
    step: int = 0
    steps: int = STEPS


hub = Hub()
app = FastAPI(lifespan=hub.lifespan)
app.mount("/ws", hub)
tasks: dict[int, Task] = {}
running: dict[int, asyncio.Task[None]] = {}


@hub.authenticate
async def who(_: HTTPConnection, token: str | None) -> Identity:
    if token is None or not token.isalnum():
        raise Unauthorized("expected a token")
    return Identity(token)


def find(session: Session, task_id: int) -> Task:
    """Return a task that a session may see."""
    task = tasks.get(task_id)
    if task is None or session.user not in (task.owner, ADMIN):
        raise NotFound(f"expected a task of yours, got {task_id}")
    return task


@hub.channel("task:{task_id:int}", history=100, events={"progress": Task, "ended": Task}, presence="count")
async def progress(session: Session, task_id: int) -> None:
    find(session, task_id)


@progress.snapshot
async def state(session: Session, task_id: int) -> Task:
    return find(session, task_id)


@hub.channel("admin:tasks", events={"started": Task, "ended": Task})
async def all_tasks(session: Session) -> None:
    if session.user != ADMIN:
        raise Forbidden("expected the administrator")


@hub.command("task_status")
async def task_status(session: Session, task_id: int) -> Task:
    return find(session, task_id)


@hub.command("cancel_task")
async def cancel_task(session: Session, task_id: int) -> Task:
    task = find(session, task_id)
    if task.status == "running":
        running[task_id].cancel()
        await asyncio.wait([running[task_id]])
    return task


async def work(task: Task) -> None:
    """Do the task, and say how far it is."""
    try:
        await all_tasks.publish("started", task)
        while task.step < task.steps:
            await asyncio.sleep(PAUSE)
            task.step += 1
            await progress(task_id=task.task_id).publish("progress", task)
        task.status = "done"
    except asyncio.CancelledError:
        task.status = "cancelled"
    finally:
        del running[task.task_id]
        await progress(task_id=task.task_id).publish("ended", task)
        await all_tasks.publish("ended", task)


@app.post("/tasks")
async def start(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> dict[str, int]:
    if not token.credentials.isalnum():
        raise HTTPException(401)
    task = tasks[len(tasks) + 1] = Task(len(tasks) + 1, token.credentials)
    running[task.task_id] = asyncio.create_task(work(task))
    return {"task_id": task.task_id}
