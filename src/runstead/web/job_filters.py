"""Which jobs a list shows, as its address says."""

from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from runstead.model.errors import Invalid
from runstead.model.jobs import JobFilter, Stage
from runstead.services.specs import is_label

SHOWN_STAGES = (Stage.SCHEDULING, Stage.RUNNING, Stage.COMPLETED, Stage.ERROR, Stage.CANCELED)
_MOST_LABELS = 20


class JobQuery:
    """The filter of a list, and the addresses of lists like it."""

    def __init__(self, path: str, stages: frozenset[Stage], labels: Mapping[str, str]) -> None:
        self._path = path
        self.stages = stages
        self.labels = labels

    @property
    def wanted(self) -> JobFilter:
        """The filter."""
        return JobFilter(self.stages, self.labels or None)

    @property
    def label_text(self) -> str:
        """The labels as they are typed."""
        return " ".join(f"{key}={value}" for key, value in self.labels.items())

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.stages and not self.labels

    def with_stage(self, stage: Stage | None) -> str:
        """Return the address of the list with that stage only (None: all)."""
        return self._address([stage] if stage else [], self.labels)

    def with_label(self, key: str, value: str) -> str:
        """Return the address of the list with one more label."""
        return self._address(list(self.stages), {**self.labels, key: value})

    def after(self, job_id: str | None) -> str:
        """Return the address of the page that begins behind a job; None: the first."""
        return self._address(list(self.stages), self.labels, job_id)

    def _address(self, stages: list[Stage], labels: Mapping[str, str], after: str | None = None) -> str:
        query = [("stage", stage.value) for stage in stages]
        query += [("label", f"{key}={value}") for key, value in labels.items()]
        if after is not None:
            query.append(("after", after))
        return f"{self._path}?{urlencode(query)}" if query else self._path


def read_query(path: str, query: QueryParams) -> JobQuery:
    """Return the filter that an address asks for. Raises Invalid."""
    stages: set[Stage] = set()
    for text in filter(None, query.getlist("stage")):
        try:
            stages.add(Stage(text.upper()))
        except ValueError:
            raise Invalid(f"there is no such stage: {text[:50]!r}") from None
    labels: dict[str, str] = {}
    words = [word for text in query.getlist("label") for word in text.replace(",", " ").split()]
    for word in words[:_MOST_LABELS]:
        key, separator, value = word.partition("=")
        if not separator or not key or not is_label(key) or not is_label(value):
            raise Invalid(f"a label is looked for as key=value, not {word[:100]!r}")
        labels[key] = value
    return JobQuery(path, frozenset(stages), labels)
