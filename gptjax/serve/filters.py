"""What is kept from a model, and from those who read its answers: patterns, personal data, texts that a classifier names.

    refusal = "I can't help with that."     # what is said where a text is refused
    [[rules]]
    name = "personal data"                  # as it is counted
    at = "both"                             # input, output or both
    action = "redact"                       # or refuse
    personal_data = ["email", "phone", "card", "iban"]
    [[rules]]
    name = "weapons"
    at = "input"
    action = "refuse"
    patterns = ['(?i)how to (make|build) a bomb']
    [[rules]]
    name = "rude"
    at = "output"
    action = "refuse"
    classifier = "runs/rude"                # a run with a task head of classes
    labels = ["rude"]
    threshold = 0.8                         # of its probability

    filters = Filters.of(["filters.toml"])
    verdict = filters.check_input(messages)  # .messages to go on with, or .refusal
    output = filters.output()                # one for each answer
    output.feed(piece)                       # what may be shown by now
    output.end()                             # the rest, or a Refusal: finish_reason "content_filter"

An answer that streams is filtered as if it came at once, however it is cut into pieces: what may still become a match, or a
longer one, is held back (partial matching of the package `regex`). A classifier of answers holds all back, as it judges the
whole. What was shown before a refusal can't be taken back.
"""

import collections
import dataclasses
import pathlib
import threading
import tomllib
from collections.abc import Callable
from typing import NamedTuple

import regex

from gptjax.errors import UserError, choose, did_you_mean, first_line
from gptjax.serve.personal_data import KINDS

PLACES = {"input": ("input",), "output": ("output",), "both": ("input", "output")}
ACTIONS = {"redact": "what is found is replaced", "refuse": "the text is refused"}
REFUSAL = "This can't be answered here."
FIELDS = ("name", "at", "action", "patterns", "personal_data", "classifier", "labels", "threshold")
CONTEXT = 64  # characters before what is undecided, which lookbehind sees


class Verdict(NamedTuple):
    """Of a request: messages to go on with, or the refusal to say instead; and the rules that acted."""

    messages: list
    refusal: str | None = None
    rules: tuple[str, ...] = ()


class Refusal(NamedTuple):
    """The end of an answer that is refused: text to say in its place, and the rule."""

    text: str
    rule: str


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One pattern of a rule. shown: what stands in place of a match."""

    rule: str
    action: str
    compiled: regex.Pattern
    shown: str
    is_valid: Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Judge:
    """A classifier's rule. classify(text) is {label: probability}."""

    rule: str
    classify: Callable[[str], dict[str, float]]
    labels: tuple[str, ...]
    threshold: float

    def refuses(self, text: str) -> bool:
        probability = self.classify(text)
        return sum(probability[label] for label in self.labels) >= self.threshold


class Counts:
    """How often each rule acted, from any thread."""

    def __init__(self):
        self._lock, self._counts = threading.Lock(), collections.Counter()

    def add(self, place: str, rule: str, action: str) -> None:
        with self._lock:
            self._counts[place, rule, action] += 1

    def snapshot(self) -> dict[tuple[str, str, str], int]:
        """{(place, rule, action): times}"""
        with self._lock:
            return dict(self._counts)

    def prometheus(self) -> str:
        """In Prometheus's text format."""
        lines = ["# HELP gptjax_filter_total Texts in which a filter acted.", "# TYPE gptjax_filter_total counter"]
        for key, count in sorted(self.snapshot().items()):
            values = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in key)
            labels = ",".join(f'{name}="{value}"' for name, value in zip(("place", "rule", "action"), values))
            lines.append(f"gptjax_filter_total{{{labels}}} {count}")
        return "\n".join(lines) + "\n"


class Filters:
    """patterns, judges: {"input": [...], "output": [...]}. Without any, texts pass as they are."""

    def __init__(self, patterns: dict, judges: dict, refusal: str = REFUSAL):
        self._patterns, self._judges, self.refusal, self.counts = patterns, judges, refusal, Counts()

    @classmethod
    def of(cls, specs, judge_of=None) -> "Filters":
        """Of paths of TOML files, or of tables as they hold. judge_of(path): the classify function of a run; None: the run is
        loaded. Raises UserError that begins with the file: it cannot be read, or a rule is wrong."""
        patterns, judges = {"input": [], "output": []}, {"input": [], "output": []}
        refusal = REFUSAL
        for spec in specs:
            table, where = (spec, "filters") if isinstance(spec, dict) else (_table(spec), str(spec))
            refusal = table.get("refusal", refusal)
            if not isinstance(refusal, str) or not refusal or table.keys() - {"refusal", "rules"}:
                raise UserError(f"{where}: expected refusal, a text, and [[rules]]; it has {', '.join(table)}.")
            for i, rule in enumerate(table.get("rules", ()), start=1):
                _add(rule, f"{where}: rule {i}", patterns, judges, judge_of or _judge_of_run)
        return cls(patterns, judges, refusal)

    def check_input(self, messages: list[dict]) -> Verdict:
        """Of all messages but the assistant's own. messages: {"role", "content"}, whose content is a text, None, or a list of
        parts with text; what is redacted is replaced in copies."""
        acted: dict[str, str] = {}
        checked = []
        for message in messages:
            message = dict(message)
            if message.get("role") != "assistant" and "content" in message:
                message["content"] = _mapped(message.get("content"), lambda text: self._check_text(text, acted))
            checked.append(message)
        for rule, action in acted.items():
            self.counts.add("input", rule, action)
        refused = "refuse" in acted.values()
        return Verdict(messages if refused else checked, self.refusal if refused else None, tuple(acted))

    def _check_text(self, text: str, acted: dict[str, str]) -> str:
        stream = _Stream(self._patterns["input"])
        kept = stream.feed(text, final=True)
        acted.update(stream.acted)
        acted.update({judge.rule: "refuse" for judge in self._judges["input"] if text.strip() and judge.refuses(text)})
        return kept

    @property
    def looks_at_answers(self) -> bool:
        return bool(self._patterns["output"] or self._judges["output"])

    def output(self) -> "Output":
        """For one answer."""
        return Output(self)


class Output:
    """An answer on its way out. refused: whether it is, from when nothing more comes and what makes it may be stopped."""

    def __init__(self, filters: Filters):
        self._filters = filters
        self._stream = _Stream(filters._patterns["output"])
        self._judges, self._whole = filters._judges["output"], ""
        self._refusal: Refusal | None = None
        self._ended = False

    @property
    def refused(self) -> bool:
        return self._refusal is not None

    def feed(self, text: str) -> str:
        """What may be shown by now, "" of a refused answer."""
        if self.refused:
            return ""
        if self._judges:
            self._whole += text
            return ""
        return self._passed(text, final=False)

    def end(self) -> str | Refusal:
        """What was held back; or the refusal. The second call says the same of a refusal, and "" otherwise."""
        if self._ended or self.refused:
            self._ended = True
            return self._refusal or ""
        self._ended = True
        for judge in self._judges:
            if self._whole.strip() and judge.refuses(self._whole):
                self._refuse(judge.rule)
                return self._refusal
        kept = self._passed(self._whole, final=True)
        for rule, action in self._stream.acted.items():
            if action == "redact":
                self._filters.counts.add("output", rule, action)
        return self._refusal or kept

    def _passed(self, text: str, final: bool) -> str:
        kept = self._stream.feed(text, final)
        if self._stream.refused is not None:
            self._refuse(self._stream.refused)
        return kept

    def _refuse(self, rule: str) -> None:
        self._refusal = Refusal(self._filters.refusal, rule)
        self._filters.counts.add("output", rule, "refuse")


class _Stream:
    """Replaces matches in a text that comes in pieces. acted: {rule: action}. refused: the rule that stopped it."""

    def __init__(self, patterns: list[Pattern]):
        self._patterns, self._text, self._at = patterns, "", 0  # characters before _at are decided
        self.acted: dict[str, str] = {}
        self.refused: str | None = None

    def feed(self, text: str, final: bool) -> str:
        """What is decided now. Nothing comes after a refusal, and of what the refused match began with nothing before it."""
        if not self._patterns:
            return text
        self._text += text
        kept = []
        while self.refused is None and self._at < len(self._text):
            if not final and any(one.compiled.fullmatch(self._text, self._at, partial=True) for one in self._patterns):
                break  # with more text, a match may begin here, or be longer
            kept.append(self._decide())
        drop = max(0, self._at - CONTEXT)
        self._text, self._at = self._text[drop:], self._at - drop
        return "".join(kept)

    def _decide(self) -> str:
        """What is shown of the next character, or of the longest match that begins with it."""
        found = [(end, one) for one in self._patterns if (end := self._end_of(one)) is not None]
        if not found:
            self._at += 1
            return self._text[self._at - 1]
        end, pattern = max(found, key=lambda pair: pair[0])
        refusing = [one for _, one in found if one.action == "refuse"]
        if refusing:
            self.refused = refusing[0].rule
            self.acted[refusing[0].rule] = "refuse"
            return ""
        self.acted[pattern.rule] = "redact"
        self._at = end
        return pattern.shown

    def _end_of(self, pattern: Pattern) -> int | None:
        """Where the match that begins here ends; None: there is none. One that is not valid may be too long: it is then tried
        up to each place where a word ends."""
        match = pattern.compiled.match(self._text, self._at)
        if match is None or match.end() == self._at:
            return None
        if pattern.is_valid(match[0]):
            return match.end()
        for end in range(match.end() - 1, self._at, -1):
            between = self._text[end - 1].isalnum() and not self._text[end].isalnum()
            if between and (shorter := pattern.compiled.fullmatch(self._text, self._at, end)) is not None:
                if pattern.is_valid(shorter[0]):
                    return end
        return None


def _mapped(content, function):
    """Content with function of each of its texts."""
    if isinstance(content, str):
        return function(content)
    if isinstance(content, list):
        return [
            part | {"text": function(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
    return content


def _table(path) -> dict:
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"filters {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {first_line(error)}.") from error


def _add(rule: dict, where: str, patterns: dict, judges: dict, judge_of) -> None:
    """Adds a rule to those of its places. Raises UserError: it is wrong."""
    for key in rule:
        if key not in FIELDS:
            raise UserError(f"{where} has a key {key!r}{did_you_mean(key, FIELDS)}; a rule has: {', '.join(FIELDS)}.")
    name, action = rule.get("name"), rule.get("action")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where} has no name, by which it is counted.")
    choose(ACTIONS, action, f"{where}: action")
    places = PLACES[rule["at"]] if rule.get("at") in PLACES else choose(PLACES, str(rule.get("at")), f"{where}: at")
    ways = [key for key in ("patterns", "personal_data", "classifier") if rule.get(key)]
    if len(ways) != 1:
        raise UserError(
            f"{where} has {' and '.join(ways) or 'nothing to look for'}; give one of patterns, personal_data, classifier."
        )
    if ways == ["classifier"]:
        judge = _judge(rule, where, judge_of)
        for place in places:
            judges[place].append(judge)
        return
    made = _personal(rule, where) if ways == ["personal_data"] else _own(rule, where)
    for place in places:
        patterns[place] += made


def _personal(rule: dict, where: str) -> list[Pattern]:
    kinds = {name: choose(KINDS, name, f"{where}: personal_data") for name in rule["personal_data"]}
    return [
        Pattern(rule["name"], rule["action"], regex.compile(kind.pattern), f"[{name}]", kind.is_valid)
        for name, kind in kinds.items()
    ]


def _own(rule: dict, where: str) -> list[Pattern]:
    made = []
    for text in rule["patterns"]:
        try:
            compiled = regex.compile(text)
        except (regex.error, TypeError) as error:
            raise UserError(f"{where}: the pattern {text!r} cannot be read: {first_line(error)}.") from error
        if compiled.fullmatch(""):
            raise UserError(f"{where}: the pattern {text!r} finds an empty text; have it ask for a character at least.")
        made.append(Pattern(rule["name"], rule["action"], compiled, f"[{rule['name']}]", lambda _: True))
    return made


def _judge(rule: dict, where: str, judge_of) -> Judge:
    labels, threshold = tuple(rule.get("labels", ())), rule.get("threshold", 0.5)
    if rule["action"] != "refuse":
        raise UserError(f'{where}: a classifier names no part of a text to redact; use action = "refuse".')
    if not labels or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise UserError(f"{where}: a classifier needs labels that refuse, and a threshold in (0, 1].")
    classify = judge_of(rule["classifier"])
    unknown = set(labels) - classify(".").keys()
    if unknown:
        known = ", ".join(classify("."))
        raise UserError(f"{where}: {rule['classifier']} has no label {', '.join(sorted(unknown))}; it has: {known}.")
    return Judge(rule["name"], classify, labels, float(threshold))


def _judge_of_run(path: str):
    """text -> {label: probability}, of a run with a task head of classes."""
    from gptjax.run import run

    loaded = run.load(path)

    def classify(text: str) -> dict[str, float]:
        [prediction] = loaded.classify([text])
        return prediction.probability

    return classify
