"""Find the first cause in the engine's lines, past wrappers and consequences."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from minimax_metal.host.engine.diagnosis.lines import Line
from minimax_metal.host.engine.diagnosis.rules import Level, Rule, rules

WORDS: Final = 300
"""Maximum characters of an engine message in a reason; longer ones are cut at the end."""

_WRAPPERS: Final = re.compile(
    r"(?:(?:Exception|RuntimeError): )?Capture (?:cuda|cpu) graph failed: ?"
    r"|(?:Scheduler|TokenizerManager|DetokenizerManager|DataParallelController|\w{1,40}) hit an exception: ?"
    r"|Initialization failed\. warmup error: ?"
    r"|(?:Exception|RuntimeError): Worker (?:failed with error|\d{1,4} failed):? ['\"]?",
    re.IGNORECASE,
)
_CAPTURE: Final = re.compile(r"Capture (?:cuda|cpu) graph failed", re.IGNORECASE)
# Advice that the engine prints for any reason, and lines that are not an end.
_ADVICE: Final = re.compile(
    r"^\s{0,8}(?:\d\. (?:set|disable|if it is|try|reduce|use|lower) |Possible (?:solutions|suggestions)|"
    r"Open an issue on GitHub|For debugging consider|Compile with .TORCH_USE_CUDA_DSA|"
    r"CUDA kernel errors might|Device-side assertion tracking|Please ensure sgl_kernel|"
    r"If reserved but unallocated memory)"
)
_BENIGN: Final = re.compile(
    r"server_args=|ServerArgs\(|Ignore import error|To silence this warning|"
    r"(?:Future|Deprecation|Runtime|Import)Warning\b|"
    r"multimem all-gather disabled|^\s{0,12}(?:File \"|\^{2,}|~{2,})|"
    r"^metal supervise: (?!engine (?:was not started|hung|not ready)|cannot)|"
    r"^frame #\d|^Traceback \(most recent"
)
_TIP: Final = re.compile(r"\.? If exit code is -9 \(SIGKILL\).*")
_HEALTHY: Final = re.compile(
    r"(?:Prefill|Decode|Extend) batch|\" 200 OK|The server is fired up|Load weight end|KV Cache is allocated|"
    r"Memory pool end|Capture .{1,30} graph end|metal supervise: ready after|Application startup complete"
)
READY: Final = re.compile(
    r"The server is fired up|(?:Prefill|Decode|Extend) batch|metal supervise: ready after"
)
_FATAL: Final = re.compile(
    r"hit an exception|[Ww]atchdog timeout \(|terminate called|Fatal Python error|"
    r"Received sigquit|SIGQUIT received|crashed with exit code|scheduler is dead|"
    r"died during initialization|Main process exited|"
    r"watchdog thread terminated|Initialization failed\. |"
    r"Capture (?:cuda|cpu) graph failed|Segmentation fault"
)
_START: Final = re.compile(
    r"^Starting (?:sglang@|SGLang|MiniMax)|^server_args=|^\S{0,60}server_args=ServerArgs|"
    r"^metal supervise: starting"
)
EXCEPTION: Final = re.compile(
    r"^(?:\[[^\]]{0,80}\]\s?)?((?:[A-Za-z_][\w.]{0,120}\.)?"
    r"[A-Z]\w{0,80}(?:Error|Exception|Exit|Failure)\b(?::? .{0,400}|:?$))"
)
# After a traceback any name may be an exception: pynvml.NVMLError_Unknown, triton's OutOfResources.
_RAISED: Final = re.compile(r"^((?:[A-Za-z_]\w{0,80}\.){0,8}[A-Za-z_]\w{0,80}(?:: .{0,400}|:?$))")
_CODE: Final = re.compile(r'^\s{0,8}File "([^"]{1,300})", line (\d{1,7})(?:, in (\S{1,80}))?')
_PHASE_WEIGHTS: Final = re.compile(
    r"Load weight begin|oading (?:safetensors checkpoint )?shards|Load weight end"
)


_PLACES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"/sglang/(?:srt/(?:server_args\.py|arg_groups/)|cli/|launch_server\.py)"), "arguments"),
    (re.compile(r"/sglang/srt/environ\.py"), "environment"),
    (re.compile(r"/sglang/srt/(?:models/registry\.py|configs/model_config\.py)"), "architecture"),
)
"""Where the engine validates its arguments: exceptions there are the user's, whatever their text."""


def place_of(file: str) -> str | None:
    """Return the class of what is raised in a file of the engine; None if only the message can tell."""
    return next((code for pattern, code in _PLACES if pattern.search(file)), None)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line that a rule matches."""

    at: int
    rule: Rule
    words: str
    line: Line
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Read:
    """Findings in the lines of one start."""

    lines: Sequence[Line]
    finding: Finding | None
    """The cause, or its best consequence."""
    exception: tuple[int, str] | None
    """Position and text of an exception that no rule knows."""
    findings: Sequence[Finding]
    ready: bool
    """Whether the engine had been ready, judging by these lines."""
    capturing: bool = False
    """Whether the engine reports a failure while it captured CUDA graphs."""

    @property
    def unknown_first(self) -> bool:
        """Whether the exception tells more than the rules' findings."""
        return self.exception is not None and (self.finding is None or self.finding.rule.level < Level.CAUSE)


def words_of(text: str) -> str:
    """Return ``text`` with single spaces, cut at its end."""
    words = " ".join(text.split())
    return words if len(words) <= WORDS else f"{words[: WORDS - 1].rstrip()}…"


def find(line: Line, at: int) -> Finding | None:
    """Return the first rule's finding in a line; wrappers are removed first."""
    text = _TIP.sub("", line.text) if "SIGKILL" in line.text else line.text
    if not text or _ADVICE.match(text) or _BENIGN.search(text):
        return None
    if "UserWarning" in text and "too old" not in text:
        return None
    wrapped = _WRAPPERS.search(text)
    inner = text[wrapped.end() :] if wrapped else text
    for part in (inner, text) if wrapped else (text,):
        lower = part.lower()
        for rule in rules():
            if not any(needle in lower for needle in rule.needles):
                continue
            if match := rule.pattern.search(part):
                groups = {key: value for key, value in match.groupdict().items() if value}
                # Whole words: the part that a pattern allows before its own may begin inside one.
                start = match.start()
                if start and not part[start - 1].isspace():
                    start = part.rfind(" ", 0, start) + 1
                return Finding(at, rule, words_of(part[start : match.end()]), line, groups)
    return None


def last_start(lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines of the last start that contains any finding, in a journal of several."""
    starts = [
        number
        for number, line in enumerate(lines)
        if (
            "server_args=" in line.text[:200]
            or "Starting" in line.text[:12]
            or line.text[:22] == "metal supervise: start"
        )
        and _START.match(line.text[:200])
    ]
    ends = [*starts[1:], len(lines)]
    for begin, end in reversed(list(zip(starts, ends, strict=False))):
        part = lines[begin:end]
        if any(find(line, 0) or EXCEPTION.match(line.text) for line in part):
            return part
    return lines


def read(
    lines: Sequence[Line],
    deadline: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Read:
    """Find the cause in lines, oldest first.

    Args:
        lines: of one start.
        deadline: a time of ``time.monotonic`` after which no further line is read.
        stop: called before each line; true ends the reading with the findings so far.
    """
    findings: list[Finding] = []
    exceptions: list[tuple[int, str]] = []
    healthy: list[int] = []
    fatal: int | None = None
    ready = capturing = tracing = False
    for at, line in enumerate(lines):
        if stop() or (deadline is not None and time.monotonic() > deadline):
            break
        if line.kernel or not line.text:
            continue
        raised = (
            _RAISED.match(line.text) if tracing and not line.text.startswith((" ", "Traceback")) else None
        )
        tracing = "Traceback (most recent" in line.text or (tracing and line.text.startswith(" "))
        if fatal is None and _FATAL.search(line.text):
            fatal = at
        capturing = capturing or ("aph failed" in line.text and _CAPTURE.search(line.text) is not None)
        if _HEALTHY.search(line.text):
            healthy.append(at)
            ready = ready or (READY.search(line.text) is not None and fatal is None)
            continue
        found = find(line, at)
        if found:
            findings.append(found)
        elif (exception := EXCEPTION.match(line.text) or raised) and not _BENIGN.search(line.text):
            exceptions.append((at, _told(exception[1], lines, at)))
    begin = max((at for at in healthy if fatal is None or at < fatal), default=-1) + 1
    unknown = _first_unknown(exceptions, begin, fatal)
    return Read(lines, _choose(findings, begin), unknown, findings, ready, capturing)


def _told(words: str, lines: Sequence[Line], at: int) -> str:
    """Return an exception's message; one without a message gives its location."""
    words = words_of(words)
    if ":" in words and not words.endswith(":"):
        return words
    following = next((line.text.strip() for line in lines[at + 1 : at + 4] if line.text.strip()), "")
    if words.endswith(":") and following:
        return words_of(f"{words} {following}")
    for number in range(at - 1, max(-1, at - 8), -1):
        if place := _CODE.match(lines[number].text):
            code = lines[number + 1].text.strip() if number + 1 < at else ""
            where = f"{place[1].rpartition('/')[2]}:{place[2]}"
            return words_of(f"{words} at {where}{f': {code}' if code else ''}")
    return words


def _choose(findings: Sequence[Finding], begin: int) -> Finding | None:
    """Return the first finding of the highest level after the last sign of health; else the last one before
    it.
    """
    late = [finding for finding in findings if finding.at >= begin]
    for level in (Level.DETAIL, Level.CAUSE):
        if level == Level.DETAIL:
            details = [finding for finding in late if finding.rule.level == level]
            causes = [finding for finding in late if finding.rule.level == Level.CAUSE]
            # A detail must be near the first cause, not much later.
            if details and (not causes or details[0].at <= causes[0].at + 40):
                return details[0]
        elif same := [finding for finding in late if finding.rule.level == level]:
            return same[0]
    early = [finding for finding in findings if finding.at < begin and finding.rule.level >= Level.CAUSE]
    if early and not late:
        return early[-1]
    for level in (Level.DEATH, Level.ECHO):
        same = [finding for finding in late if finding.rule.level == level]
        if same:
            return same[0]
    return None


def _first_unknown(
    exceptions: Sequence[tuple[int, str]], begin: int, fatal: int | None
) -> tuple[int, str] | None:
    """Return the first exception after a process reports that it ends; else the first after the last sign of
    health.
    """
    late = [one for one in exceptions if one[0] >= begin]
    if fatal is not None and (after := [one for one in late if one[0] >= fatal]):
        return after[0]
    if late:
        return late[0]
    return exceptions[-1] if exceptions else None


def ready_before_end(lines: Sequence[Line]) -> bool:
    """Return whether the engine had been ready before the first sign of an end."""
    for line in lines:
        if _FATAL.search(line.text):
            return False
        if READY.search(line.text):
            return True
    return False


def loading_weights(lines: Sequence[Line], at: int) -> bool:
    """Return whether the engine was reading weights when it wrote line ``at``."""
    for line in reversed(lines[:at]):
        if found := _PHASE_WEIGHTS.search(line.text):
            return "end" not in found[0]
        if "Capture" in line.text and "graph" in line.text:
            return False
    return False


def raised_in(lines: Sequence[Line], at: int) -> str | None:
    """Return the file of the traceback's last frame above line ``at``."""
    for line in reversed(lines[max(0, at - 12) : at]):
        if place := _CODE.match(line.text):
            return place[1]
        if line.text.startswith("Traceback"):
            return None
    return None


def last_work(lines: Sequence[Line], at: int) -> str | None:
    """Return the last line before ``at`` that shows what the engine computed."""
    for line in reversed(lines[:at]):
        if READY.search(line.text) and "batch" in line.text:
            return words_of(line.text)[:160]
    return None
