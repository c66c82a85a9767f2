"""The questions, in the order in which they are asked."""

from benchmarks.scenario import Scenario
from benchmarks.scenarios import channels, connect, fanout, inbound, latency, memory, slow

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        fanout.FANOUT,
        fanout.BURST,
        latency.LATENCY,
        memory.MEMORY,
        connect.CONNECT,
        channels.CHANNELS,
        slow.SLOW,
        inbound.INBOUND,
        fanout.GROWTH,
    )
}
