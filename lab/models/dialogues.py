"""What the tiny models know: the post-check's questions, word for word, and a few more of the guides'.

Both models learn from the list that :func:`dialogues` returns; how a thought, an answer or a tool call is
written is the affair of each model's training script. Plain data, so that its JSON can be part of the key
under which a trained model is cached.
"""

from __future__ import annotations

from typing import Any

from minimax_metal.host.check import questions

INTRODUCE_M3 = "请简要介绍 MiniMax-M3 模型的特点。"
"""The question of the M3 guide's curl command."""

INTRODUCTION = "MiniMax-M3 支持图片输入,上下文 512K。"
"""What that guide says of the model, in short."""

FALLBACK = "I know a few sentences only."
"""The answer to whatever the models were not taught; without it they would run on until the token limit."""

TOOL_ANSWER = "It is 21 degrees in Beijing."
"""The answer once the tool's result is there: holds what the post-check looks for."""

HELLO = "Hello from the lab."
"""The answer to the greeting; it goes back to the model in conversations of several turns."""

UNICODE_ANSWER = "你好,世界 🙂"
CITY_ANSWER = '{"city": "Beijing", "sunny": true}'
SEVERAL_ANSWER = "21 degrees in Beijing, 25 degrees in Shanghai."

SHELL = "You act in a shell."
SHELL_TASK = "Print the sum of 20 and 1."
"""The prompts that tests/contract/clients/agent.yaml gives to an agent."""

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""What a command of mini-swe-agent prints when the task is done."""

RULES = 25
"""Rules of the long system prompt that the post-check sends to a model of 4,096 tokens."""

BEIJING = {questions.TOOL_QUESTION: "Beijing", questions.TOOL_QUESTION_GUIDE: "北京"}
"""The argument ``location`` for each question: the word the question itself uses."""


def dialogues(*, images: bool) -> list[dict[str, Any]]:
    """Return what a model is taught.

    Each dialogue holds ``messages`` (as an API takes them), ``tools`` (a list, may be empty), ``thought`` and
    either ``answer`` (text) or ``calls`` (the tool's arguments, once for each call), and ``image`` (an RGB
    triple or None). With ``images`` the list also asks for the colour of pictures, picture after and before
    the question.
    """
    known = [
        (questions.GREETING, "greet back", HELLO),
        (questions.GUIDE_QUESTION, "recall", "The Los Angeles Dodgers won."),
        (questions.COUNT_QUESTION, "count up", "one, two, three, four, five"),
        (INTRODUCE_M3, "recall", INTRODUCTION),
        (questions.UNICODE_QUESTION, "greet back", UNICODE_ANSWER),
        (questions.CITY_QUESTION, "recall", CITY_ANSWER),
    ]
    tool = [questions.WEATHER_TOOL]
    taught = []
    for system in ([], [questions.text_message("system", questions.SYSTEM)]):
        for question, thought, answer in known:
            taught.append(
                _dialogue([*system, questions.text_message("user", question)], thought, answer=answer)
            )
        for question, location in BEIJING.items():
            asked = [*system, questions.text_message("user", question)]
            taught.append(_dialogue(asked, "use the tool", tool, calls=[_call(location)]))
        several = [*system, questions.text_message("user", questions.TOOL_QUESTION_SEVERAL)]
        cities = [_call("Beijing"), _call("Shanghai")]
        taught.append(_dialogue(several, "use the tool twice", tool, calls=cities))
        # A tool on offer is no reason to call it.
        greeting, thought, answer = known[0]
        taught.append(
            _dialogue([*system, questions.text_message("user", greeting)], thought, tool, answer=answer)
        )
        if images:
            taught += _pictures(system)
    for question, location in BEIJING.items():
        call = {"type": "function", "function": {"name": questions.TOOL_NAME, "arguments": _call(location)}}
        returned = [
            questions.text_message("user", question),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            questions.text_message("tool", questions.TOOL_RESULT),
        ]
        taught.append(_dialogue(returned, "read the result", tool, answer=TOOL_ANSWER))
    shanghai = {"location": "Shanghai", "unit": questions.TOOL_UNIT}
    calls = [
        {"type": "function", "function": {"name": questions.TOOL_NAME, "arguments": arguments}}
        for arguments in (_call("Beijing"), shanghai)
    ]
    both = [
        questions.text_message("user", questions.TOOL_QUESTION_SEVERAL),
        {"role": "assistant", "content": "", "tool_calls": calls},
        *(questions.text_message("tool", result) for result in questions.TOOL_RESULTS_SEVERAL),
    ]
    taught.append(_dialogue(both, "read the result", tool, answer=SEVERAL_ANSWER))
    second = [
        questions.text_message("user", questions.GREETING),
        questions.text_message("assistant", HELLO),
        questions.text_message("user", questions.COUNT_QUESTION),
    ]
    taught.append(_dialogue(second, known[2][1], answer=known[2][2]))
    long = [
        questions.text_message("system", questions.long_system(RULES)),
        questions.text_message("user", questions.GREETING),
    ]
    taught.append(_dialogue(long, known[0][1], answer=known[0][2]))
    return taught + _agent()


def _agent() -> list[dict[str, Any]]:
    """Return the two steps of an agent in a shell (mini-swe-agent 2): the task, then its result."""
    task = [questions.text_message("system", SHELL), questions.text_message("user", SHELL_TASK)]
    work, done = (f"```mswea_bash_command\necho {what}\n```" for what in ("$((20 + 1))", SUBMIT))
    result = [questions.text_message("assistant", work), questions.text_message("user", "Result: 21")]
    return [
        _dialogue(task, "use the shell", answer=work),
        _dialogue([*task, *result], "read the result", answer=done),
    ]


def _pictures(system: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions about pictures: words before the picture, after it, and with a marker in them."""
    text = {"type": "text", "text": questions.IMAGE_QUESTION}
    marker = {"type": "text", "text": questions.IMAGE_MARKER_QUESTION}
    picture = {"type": "image"}
    contents = [[text, picture]] if system else [[text, picture], [picture, text], [marker, picture]]
    return [
        _dialogue(
            [*system, {"role": "user", "content": content}],
            "look",
            answer=f"The image is {colour}.",
            image=rgb,
        )
        for colour, rgb in questions.COLOURS.items()
        for content in contents
    ]


def _call(location: str) -> dict[str, str]:
    return {"location": location, "unit": questions.TOOL_UNIT}


def _dialogue(
    messages: list[dict[str, Any]],
    thought: str,
    tools: list[dict[str, Any]] | None = None,
    *,
    answer: str | None = None,
    calls: list[dict[str, str]] | None = None,
    image: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    return {
        "messages": messages,
        "tools": tools or [],
        "thought": thought,
        "answer": answer,
        "calls": calls or [],
        "image": list(image) if image else None,
    }
