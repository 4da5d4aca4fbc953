"""How answers are in service: lengths, ends, refusals, repetition, and how sure the model was; and whether that has drifted
from a week that serves as a reference.

    quality = Quality(reference="reference.json")
    quality.observe(Answered("gpt", text, token_ids, "eot", logprobs))
    quality.prometheus()          # lines for GET /metrics
    quality.page()                # HTML for GET /quality

Kept are counts in fixed bins, by model and day, of the last seven days: no text, and a memory that does not grow with
answers. A reference file that is not there is begun: the first week of answers is written into it. One that is there, whole,
is compared with. The counts of any time are GET /quality.json, in the same form: save it to make a reference of it.
"""

import collections
import json
import pathlib
import threading
import time
import typing

import numpy as np

from gptjax.errors import UserError
from gptjax.serve import answer_measures as measures
from gptjax.serve import drift
from gptjax.storage import writing

DAY = 86400.0  # seconds
DAYS = 7  # of the window, and of a reference
SAVE_SECONDS = 600.0  # between two writes of a reference that is being recorded
FORMAT = "gptjax-quality"
BROKEN_OFF = ("cancelled", "failed", "content_filter")  # nothing is measured of what has no end of its own


class Answered(typing.NamedTuple):
    """A finished answer."""

    model: str
    text: str
    tokens: tuple[int, ...]
    reason: str  # as jobs.Ending's
    logprobs: tuple[float, ...] = ()  # of tokens, in nats; empty: they were not asked for


def answered(record) -> Answered:
    """An answer as it is measured. record: a service.Record."""
    text = record.text
    return Answered(record.served.name, text.text, tuple(text.tokens), text.ending.reason, tuple(text.logprobs))


class Counts:
    """Counts of one model's answers: how many fell in each bin of each measure, and the sums of what was measured."""

    def __init__(self, bins: dict[str, list[int]] | None = None, sums: dict[str, float] | None = None):
        empty = {name: [0] * measure.bins for name, measure in measures.MEASURES.items()}
        self.bins = empty | {name: list(counts) for name, counts in (bins or {}).items()}
        self.sums = dict.fromkeys(measures.MEASURES, 0.0) | (sums or {})
        self.reasons = collections.Counter()

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.bins[name][measures.MEASURES[name].bin(value)] += 1
            self.sums[name] += value

    def __add__(self, other: "Counts") -> "Counts":
        both = Counts()
        for name in measures.MEASURES:
            both.bins[name] = np.add(self.bins[name], other.bins[name]).tolist()
            both.sums[name] = self.sums[name] + other.sums[name]
        both.reasons = self.reasons + other.reasons
        return both

    def mean(self, name: str) -> float | None:
        n = sum(self.bins[name])
        return self.sums[name] / n if n else None


class Quality:
    """What all models of a server have said. Any thread may observe and ask. now: the clock, seconds since 1970."""

    def __init__(self, reference: str | None = None, now=time.time):
        """Raises UserError: the reference is no file of counts, or cannot be written."""
        self._now, self._lock, self.since = now, threading.Lock(), now()
        self._total: dict[str, Counts] = {}  # since the server began, as Prometheus counts
        self._days: dict[str, dict[int, Counts]] = {}
        self._file = pathlib.Path(reference) if reference else None
        self._reference = _read(self._file) if self._file else None
        self._saved = now()
        if self._file and self._reference is None:
            self._reference = {"from": now(), "to": now(), "complete": False, "models": {}}
            self._save()

    def observe(self, answered: Answered) -> None:
        values = {} if answered.reason in BROKEN_OFF else measures.measured(answered)
        with self._lock:
            now = self._now()
            for counts in self._wherever_counted(answered.model, now):
                counts.reasons[answered.reason] += 1
                counts.add(values)
            if self._recording and (now - self._saved >= SAVE_SECONDS or now - self._reference["from"] >= DAYS * DAY):
                self._save()

    def _wherever_counted(self, model: str, now: float) -> list[Counts]:
        day = int(now // DAY)
        days = self._days.setdefault(model, {})
        for old in [each for each in days if each <= day - DAYS]:
            del days[old]
        places = [self._total.setdefault(model, Counts()), days.setdefault(day, Counts())]
        if self._recording:
            places.append(self._reference["models"].setdefault(model, Counts()))
        return places

    @property
    def _recording(self) -> bool:
        return self._reference is not None and not self._reference["complete"]

    def _save(self) -> None:
        """Writes the reference, which is complete once its week is over."""
        now = self._now()
        self._saved = now
        self._reference |= {"to": now, "complete": now - self._reference["from"] >= DAYS * DAY}
        try:
            writing.replace_whole(self._file, json.dumps(_as_json(self._reference)))
        except OSError as error:
            raise UserError(
                f"--quality_reference={self._file}: {error.strerror or error}; give another file."
            ) from error

    def close(self) -> None:
        """Writes what a reference has so far."""
        with self._lock:
            if self._recording:
                self._save()

    # ---- what there is to see

    def window(self) -> dict[str, Counts]:
        """The counts of the last seven days, by model."""
        with self._lock:
            first = int(self._now() // DAY) - DAYS
            found = {}
            for model, days in self._days.items():
                found[model] = sum((counts for day, counts in days.items() if day > first), Counts())
            return found

    def total(self) -> dict[str, Counts]:
        """The counts since the server began, by model."""
        with self._lock:
            return {model: counts + Counts() for model, counts in self._total.items()}

    def reference(self) -> dict | None:
        """{"from", "to", "complete", "models": {model: Counts}}; None: there is none."""
        with self._lock:
            if self._reference is None:
                return None
            return self._reference | {"models": dict(self._reference["models"])}

    def drifts(self) -> dict[str, dict[str, drift.Drift]]:
        """model -> measure -> its drift, where there is a complete reference with enough answers."""
        reference = self.reference()
        if reference is None or not reference["complete"]:
            return {}
        window = self.window()
        return {
            model: drift.of_all(counts.bins, reference["models"][model].bins)
            for model, counts in window.items()
            if model in reference["models"]
        }

    def as_json(self) -> dict:
        """The window as a reference file has it."""
        now = self._now()
        return _as_json(
            {"from": max(self.since, now - DAYS * DAY), "to": now, "complete": True, "models": self.window()}
        )

    def prometheus(self) -> str:
        from gptjax.serve import quality_metrics

        return quality_metrics.lines(self.total(), self.drifts())

    def page(self) -> str:
        from gptjax.serve import quality_page

        return quality_page.html(self.window(), self.reference(), self.drifts(), self.since)


def _as_json(reference: dict) -> dict:
    models = {name: {"bins": counts.bins, "sums": counts.sums} for name, counts in reference["models"].items()}
    edges = {name: list(measure.edges) for name, measure in measures.MEASURES.items()}
    return {"format": FORMAT, "version": 1, "edges": edges} | reference | {"models": models}


def _read(file: pathlib.Path) -> dict | None:
    """None: there is no such file. Raises UserError: it is another file."""
    try:
        value = json.loads(file.read_text())
        if value["format"] != FORMAT or value["version"] != 1:
            raise UserError(
                f"--quality_reference={file} is no reference of this version; name one from GET /quality.json."
            )
        expected = {name: list(measure.edges) for name, measure in measures.MEASURES.items()}
        if value["edges"] != expected:
            raise UserError(f"--quality_reference={file} counts in other bins than this version; record it anew.")
        models = {name: Counts(each["bins"], each["sums"]) for name, each in value["models"].items()}
        return {name: value[name] for name in ("from", "to", "complete")} | {"models": models}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"--quality_reference={file}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--quality_reference={file} holds no counts of answers; save GET /quality.json.") from error


def routes(quality: Quality) -> list:
    """Starlette's routes of /quality and /quality.json."""
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    from gptjax.serve import quality_page

    async def page(request) -> HTMLResponse:
        return HTMLResponse(quality.page(), headers=quality_page.HEADERS)

    async def counts(request) -> JSONResponse:
        return JSONResponse(quality.as_json())

    return [Route("/quality", page), Route("/quality.json", counts)]
