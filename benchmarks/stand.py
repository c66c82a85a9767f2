"""A case's server and clients, kept from one round to the next."""

from contextlib import AsyncExitStack

from benchmarks.plan import Plan
from benchmarks.results import Case
from benchmarks.scenario import Measure, Sample, Scenario
from benchmarks.server import Server, running
from benchmarks.void import Void


class Stand:
    """Opens when it is first asked to measure, and again after a round that was void."""

    def __init__(self, scenario: Scenario, case: Case, plan: Plan) -> None:
        self.case = case
        self._scenario = scenario
        self._plan = plan
        self._held = AsyncExitStack()
        self._server: Server | None = None
        self._measure: Measure | None = None

    def __repr__(self) -> str:
        return f"<Stand {self.case!r}>"

    async def round(self) -> None:
        """Measure once, and note what came out."""
        try:
            self.case.add(await self._sample())
        except (Void, OSError) as why:
            self.case.void(str(why) or repr(why))
            await self.close()
        if self._scenario.fresh:
            await self.close()

    async def close(self) -> None:
        """Let go of server and clients."""
        self._server = self._measure = None
        await self._held.aclose()

    async def _sample(self) -> Sample:
        if self._server is None or self._measure is None:
            self._server = await self._held.enter_async_context(running(self.case.rival))
            stage = self._scenario.stage(self._server, self._plan, self.case.variant)
            self._measure = await self._held.enter_async_context(stage)
        sample = await self._measure()
        report = await self._server.report()
        if self._scenario.name != "slow" and (report.dropped or report.slow):
            raise Void(f"the server dropped {report.dropped} messages and gave up {report.slow} sessions")
        return sample
