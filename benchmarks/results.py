"""What came out: every sample, and what can be said of them."""

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.rivals import Rival
from benchmarks.scenario import Sample, Scenario, Variant


class Spread(NamedTuple):
    """A number over several rounds."""

    median: float
    least: float
    most: float


class Case:
    """One rival in one variant of a scenario. A round that is void has `None` for its sample."""

    def __init__(self, rival: Rival, variant: Variant) -> None:
        self.rival = rival
        self.variant = variant
        self.samples: list[Sample | None] = []
        self.voids: list[str] = []

    def __repr__(self) -> str:
        return f"<Case {self.label} {len(self.samples)} rounds>"

    @property
    def label(self) -> str:
        return f"{self.rival.name}, {self.variant.label}" if self.variant.label else self.rival.name

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def void(self, why: str) -> None:
        self.samples.append(None)
        self.voids.append(why)

    def spread(self, key: str) -> Spread | None:
        """Return a number over all rounds that count, `None` if there are none."""
        values = [sample[key] for sample in self.samples if sample is not None and key in sample]
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def ratio(self, other: "Case", key: str) -> float | None:
        """Return by what it differs from another, as the median over the rounds that both have."""
        pairs = zip(self.samples, other.samples, strict=False)
        ratios = [mine[key] / theirs[key] for mine, theirs in pairs if mine and theirs and theirs[key]]
        return statistics.median(ratios) if ratios else None


class Result:
    """One scenario's cases, in the order of rivals."""

    def __init__(self, scenario: Scenario, cases: Iterable[Case]) -> None:
        self.scenario = scenario
        self.cases = list(cases)

    def case(self, rival: str, number: int | None = None) -> Case | None:
        """Return a rival's case of a variant, of the only one if none is named."""
        for case in self.cases:
            if case.rival.name == rival and number in {None, case.variant.number}:
                return case
        return None

    def floor(self, case: Case) -> Case | None:
        """Return what a case is compared with: the first rival in the same variant."""
        return self.case(self.cases[0].rival.name, case.variant.number)

    def record(self) -> dict[str, Any]:
        """Return it as the JSON file has it."""
        figures = {figure.key: figure.heading for figure in self.scenario.figures}
        return {
            "about": self.scenario.about,
            "figures": figures,
            "cases": [self._record(case) for case in self.cases],
        }

    def _record(self, case: Case) -> dict[str, Any]:
        floor, figures = self.floor(case), self.scenario.figures
        spreads = {figure.key: case.spread(figure.key) for figure in figures}
        return {
            "rival": case.rival.name,
            "variant": case.variant.label,
            "number": case.variant.number,
            **{key: spread._asdict() for key, spread in spreads.items() if spread is not None},
            "ratio": None if floor is None else case.ratio(floor, figures[0].key),
            "void": case.voids,
            "rounds": case.samples,
        }
