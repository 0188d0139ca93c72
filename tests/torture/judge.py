"""The rules by which an answer is judged. None of them knows a text of the product."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

VERDICTS = ("good", "unclear", "silent", "traceback", "hang")
USAGE = 2  # the exit code of the parser, which shows how to get help and names the option
_LOGGED = re.compile(r"\d\d:\d\d:\d\d ")
LONGEST_LINE = 1200  # characters; more is a dump of the file and not a sentence

# Verbs that tell the reader what to do, where they begin a clause: "…; rename it", "…, or give another".
ADVICE = (
    "add ask choose close convert copy correct cut declare divide enter exclude export fetch free get "
    "give install lay leave lower make mend move multiply name open pass put raise read remove rename "
    "replace round run save set shorten spell start subtract take try turn unpack unset unzip use wait "
    "write "
)
_ADVISED = re.compile(
    rf"(?:^|[;:.,(—] ?|\b(?:or|and|then|to|else|please) )(?:{'|'.join(ADVICE.split())})\b", re.IGNORECASE
)

# A list of what may be given instead tells what to do, too, and so does what a value must be.
_CHOICES = re.compile(r"\b(?:known are|known:|choices?:|one of|must be|must not be) \S")


@dataclass(frozen=True)
class Answer:
    """What came of a command. code: exit status, negative for a signal, None where it had to be ended.
    left: paths that are in the home afterwards and were not before; lost: entries that are there no more;
    outlived: how many processes were there after it."""

    code: int | None
    stdout: str
    stderr: str
    left: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    outlived: int = 0


@dataclass(frozen=True)
class Reply:
    """What came of a request. status: None where none came; closed: whether the server hung up."""

    status: int | None
    text: str
    closed: bool = True


@dataclass(frozen=True)
class Refused:
    """The command ends with one sentence that holds every one of `names`, and nothing is left in the home.

    hint: a pattern of an option that the sentence names; given as it is printed, it lets the command succeed.
    leaves: something may be left: it is known only after the work has begun.
    """

    names: tuple[str, ...] = ()
    hint: str = ""
    leaves: bool = False

    def faults(self, answer: Answer) -> list[str]:
        if answer.code == 0:
            return ["accepted"]
        lines = said_of(answer)
        said = lines[-1] if lines else ""
        faults = [f"{len(lines)} lines"] if len(lines) != 1 else []
        faults += [f"does not name {name!r}" for name in self.names if name not in said]
        advised = _ADVISED.search(said.removeprefix("error:")) or _CHOICES.search(said)
        if answer.code != USAGE and not advised:
            faults.append("does not say what to do")
        if len(said) > LONGEST_LINE:
            faults.append(f"a line of {len(said)} characters")
        if not said.isprintable():
            faults.append("unprintable characters")
        if answer.code not in (1, 2):
            faults.append(f"exit code {answer.code}")
        return faults + [f"left {path}" for path in answer.left[:3] if not self.leaves]


@dataclass(frozen=True)
class Accepted:
    """The command succeeds; its JSON report has these facts (by dotted path) and a warning with each word."""

    facts: Mapping[str, object] = field(default_factory=dict)
    warned: tuple[str, ...] = ()

    def faults(self, answer: Answer) -> list[str]:
        if answer.code != 0:
            return ["refused"]
        if not self.facts and not self.warned:
            return []
        try:
            report = json.loads(answer.stdout)
        except ValueError:
            return ["no JSON report"]
        got = {path: _at(report, path) for path in self.facts}
        faults = [
            f"{path} is {got[path]}, not {value}" for path, value in self.facts.items() if got[path] != value
        ]
        warnings = " | ".join(report["warnings"])
        return faults + [f"no warning of {word!r}" for word in self.warned if word not in warnings]


@dataclass(frozen=True)
class Sound:
    """Either is right: refused as above, or accepted with a report that adds up and counts `rows` rows."""

    names: tuple[str, ...]
    rows: Mapping[str, int] = field(default_factory=dict)
    leaves: bool = False

    def faults(self, answer: Answer) -> list[str]:
        if answer.code != 0:
            return Refused(self.names, leaves=self.leaves).faults(answer)
        facts = {f"{side}.rows_read": rows for side, rows in self.rows.items()}
        return Accepted(facts).faults(answer) or _sums(json.loads(answer.stdout))


@dataclass(frozen=True)
class Stopped:
    """The command ends by the signal, with one line that names it and the exit code that shells expect."""

    signal: int
    leaves: bool = True

    def faults(self, answer: Answer) -> list[str]:
        lines, name = said_of(answer), {2: "Ctrl-C", 15: "TERM"}[self.signal]
        faults = [] if answer.code == 128 + self.signal else [f"exit code {answer.code}"]
        faults += [] if len(lines) == 1 else [f"{len(lines)} lines"]
        return faults + ([] if name in "".join(lines) else [f"does not name {name}"])


@dataclass(frozen=True)
class Replied:
    """A server answers with one of `statuses`, in one line that holds every one of `names`; where a request
    is refused as one of several, the status is 200 and the line says `error`.

    closes: it may end the connection without an answer, as it must where the request never becomes whole.
    """

    statuses: tuple[int, ...]
    names: tuple[str, ...] = ()
    closes: bool = False

    def judge(self, reply: Reply) -> tuple[str, str]:
        """(verdict, why)."""
        if reply.status is None:
            good = reply.closed and self.closes
            return ("good", "") if good else ("hang", "closed unanswered" if reply.closed else "no answer")
        if reply.status >= 500 and reply.status not in self.statuses:
            return "traceback", f"status {reply.status}"
        if "Traceback (most recent call last)" in reply.text:
            return "traceback", "in the answer"
        of_one = reply.status == 200 and '"error"' in reply.text
        faults = [] if of_one or reply.status in self.statuses else [f"status {reply.status}"]
        faults += [f"does not name {name!r}" for name in self.names if name not in reply.text]
        if len(reply.text) > LONGEST_LINE and 200 not in self.statuses:
            faults.append(f"an answer of {len(reply.text)} characters")
        if not faults:
            return "good", ""
        return ("silent" if reply.status == 200 and not of_one else "unclear"), "; ".join(faults)


Expected = Refused | Accepted | Sound | Stopped


def said_of(answer: Answer) -> list[str]:
    """The lines on stderr that are not its log. A usage error, which is framed, counts as one line."""
    lines = [line for line in answer.stderr.splitlines() if line.strip() and not _LOGGED.match(line)]
    if answer.code != USAGE:
        return lines
    return [" ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in lines).split())]


def judge(expected: Expected, answer: Answer) -> tuple[str, str]:
    """(verdict, why) of an answer."""
    if answer.code is None and answer.left and isinstance(expected, Refused) and not expected.leaves:
        return "silent", "accepted, and ended while it computed"
    if answer.code is None:
        return "hang", "had to be ended"
    if answer.lost:
        return "silent", f"lost {', '.join(answer.lost[:3])}"
    if answer.outlived:
        return "unclear", f"{answer.outlived} processes outlived it"
    if "Traceback (most recent call last)" in answer.stderr or answer.code < 0:
        return "traceback", f"exit code {answer.code}"
    faults = expected.faults(answer)
    if not faults:
        return "good", ""
    return ("silent" if answer.code == 0 else "unclear"), "; ".join(faults)


def _sums(report: Mapping) -> list[str]:
    faults = []
    for side in ("source", "target"):
        counts = report[side]
        parts = ("ratings", "repeated", "quarantined", "dropped_by_core")
        if counts["rows_read"] != sum(counts[part] for part in parts):
            faults.append(f"{side}: counts do not add up")
    return faults


def _at(report: Mapping, path: str) -> object:
    for key in path.split("."):
        report = report.get(key, {}) if isinstance(report, Mapping) else None
    return report
