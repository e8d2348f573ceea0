"""One run of the suite: its options, and the answers so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from minimax_metal.host.check.answer import APPEND_THINK, Answer
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.outcome import SkippedError

REASONING_TOKENS: Final = 256
"""With fewer tokens the answer of a model that always reasons is empty (seen with 48)."""

ImageMode = Literal["ask", "accepted", "refused", "skip"]


@dataclass(frozen=True)
class Options:
    """Options of a run; the defaults are those of the command line.

    ``image`` "ask" uses the engine's own information. ``long_prompt_share`` is a share of the longest prompt
    the endpoint accepts, 0 skips that check. ``figure_levels`` are numbers of concurrent requests.
    ``abort_seconds`` is how long a freed slot may take to show.
    """

    image: ImageMode = "ask"
    max_tokens: int = 2048
    reasoning_parser: str | None = None
    always_reasons: bool = False
    """Whether a request can't turn the model's reasoning off: every token limit leaves room for it."""
    efforts: tuple[str, ...] = ()
    """Values of ``reasoning_effort`` that the model supports, lowest first; the checks use the lowest."""
    limit_tokens: int | None = None
    long_prompt_share: float = 0.5
    concurrency: int = 8
    figure_levels: tuple[int, ...] = (1, 4)
    figure_tokens: int = 32
    metrics_required: bool = False
    abort_seconds: float = 15.0
    bench: bool = False
    bench_python: Path | None = None
    bench_prompts: int = 32
    bench_input_tokens: int = 256
    bench_output_tokens: int = 64
    bench_concurrency: int = 8
    bench_tokenizer: str | None = None
    bench_timeout: float = 1800.0


@dataclass
class Context:
    """One run of the suite."""

    endpoint: Endpoint
    options: Options = Options()
    answers: dict[str, Answer] = field(default_factory=dict)
    """Answers so far, by the name of the check, for checks that look at all of them."""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def reasoning_parser(self) -> str | None:
        """The reasoning parser in use, None if unknown."""
        return self.options.reasoning_parser or self.endpoint.facts.reasoning_parser

    @property
    def appends_think(self) -> bool:
        """Whether the parser in use leaves the reasoning in the content."""
        return self.reasoning_parser == APPEND_THINK

    @property
    def limit(self) -> int | None:
        """The longest sequence in tokens, None if unknown."""
        return self.options.limit_tokens or self.endpoint.facts.limit

    @property
    def sampling(self) -> dict[str, Any]:
        """Parameters of a request unless the guide's call sets others."""
        values = {"temperature": 0, "max_tokens": self.budget(self.options.max_tokens)}
        return values | ({"reasoning_effort": self.options.efforts[0]} if self.options.efforts else {})

    def budget(self, tokens: int) -> int:
        """Return ``max_tokens`` of a request: at least what reasoning that can't be turned off needs."""
        return max(tokens, REASONING_TOKENS) if self.options.always_reasons else tokens

    @property
    def message_sampling(self) -> dict[str, Any]:
        """The same for ``/v1/messages``: its client (release 2) has no temperature, the engine has one."""
        body: dict[str, Any] = {"temperature": 0}
        if self.options.efforts:
            body["output_config"] = {"effort": self.options.efforts[0]}
        return {"max_tokens": self.budget(self.options.max_tokens), "extra_body": body}

    @property
    def takes_images(self) -> bool:
        """Return whether images must be accepted.

        Raises:
            SkippedError: unknown.
        """
        if self.options.image == "ask":
            says = self.endpoint.facts.images
            if says is None:
                raise SkippedError(
                    "the endpoint does not report whether the model accepts images; set --image or "
                    "--image-refused"
                )
            return says
        if self.options.image == "skip":
            raise SkippedError("skipped: the model accepts text only")
        return self.options.image == "accepted"

    def hear(self, name: str, answer: Answer) -> Answer:
        """Store an answer for the check that searches all of them for markup; return it."""
        self.answers[name] = answer
        return answer

    def chat(self, name: str, messages: list[dict[str, Any]], **more: Any) -> Answer:
        """Ask without streaming, and store the answer."""
        return self.hear(name, self.endpoint.chat(messages, **{**self.sampling, **more}))

    def stream(self, name: str, messages: list[dict[str, Any]], **more: Any) -> Answer:
        """Ask with streaming, and store the answer."""
        return self.hear(name, self.endpoint.stream(messages, **{**self.sampling, **more}))

    def message(
        self, name: str, messages: list[dict[str, Any]], **more: Any
    ) -> tuple[Answer, list[dict[str, Any]]]:
        """Ask ``/v1/messages`` without streaming, and store the answer; return it and its blocks."""
        answer, blocks = self.endpoint.message(messages, **{**self.message_sampling, **more})
        return self.hear(name, answer), blocks

    def message_stream(self, name: str, messages: list[dict[str, Any]], **more: Any) -> Answer:
        """Ask ``/v1/messages`` with streaming, and store the answer."""
        return self.hear(name, self.endpoint.message_stream(messages, **{**self.message_sampling, **more}))
