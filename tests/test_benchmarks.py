"""The benchmarks run; what they measure here is nobody's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_list_names_every_scenario_and_how_to_install_what_is_missing():
    listing = benchmarks("--list")
    for name in ("fanout", "burst", "latency", "memory", "connect", "channels", "slow", "inbound", "growth"):
        assert f"  {name} " in listing
    for name in ("raw", "asgi_ws_stock", "broadcaster", "django_channels", "bun"):
        assert f"  {name} " in listing
    if "not installed" in listing:
        assert "pip install -r benchmarks/requirements.txt" in listing


def test_an_unknown_rival_is_told_so():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--rivals", "raw,nobody"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "got 'nobody'" in run.stderr


@pytest.fixture(scope="module")
def fanout(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmarks") / "fanout.json"
    rivals = "raw,asgi_ws_stock,starlette_queue"
    out = benchmarks("fanout", "--quick", "--sessions", 50, "--rivals", rivals, "--json", file)
    return json.loads(file.read_bytes()), out, file


def test_every_rival_delivers_everything(fanout):
    record, _, _ = fanout
    cases = record["scenarios"]["fanout"]["cases"]
    assert [case["rival"] for case in cases] == ["raw", "asgi_ws_stock", "starlette_queue"]
    for case in cases:
        assert case["void"] == []  # nothing missing, doubled or out of order
        assert len(case["rounds"]) == record["plan"]["rounds"] == 3
        for sample in case["rounds"]:
            assert sample["cpu"] > 0
            assert sample["deliveries"] > 0
            assert sample["deliveries"] % 50 == 0
    assert cases[0]["ratio"] == 1.0


def test_a_run_names_its_machine_and_versions_and_is_shown(fanout):
    record, out, file = fanout
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["uvicorn"]
    assert record["bars"][0]["of"] == "asgi_ws_stock / starlette_queue"
    assert "fanout: all sessions hear one message per turn of the loop" in out
    assert file.with_suffix(".svg").read_text().startswith("<svg ")


def test_a_missing_delivery_makes_a_round_void():
    from benchmarks.client import Listener, Opening
    from benchmarks.dialects import Dialect
    from benchmarks.message import message
    from benchmarks.rivals.raw import frame
    from benchmarks.tally import Tally
    from benchmarks.void import Void

    tally = Tally()
    opening = Opening(tally, Dialect(), request=b"", awaited=0, welcome=lambda: None, ready=lambda _: None)
    opening.transport = None
    listener = Listener(opening)
    tally.expect(4)
    frames = [frame(json.dumps(message(number), separators=(",", ":")).encode()) for number in range(4)]
    assert {len(part) for part in frames} == {4 + 155}
    listener.data_received(frames[0][:100])
    listener.data_received(frames[0][100:])
    listener.data_received(frames[1])
    assert tally.due == 2
    tally.check()
    listener.data_received(frames[3])
    with pytest.raises(Void, match="expected message 2, got 3"):
        tally.check()
