"""The post-check's questions, and what a correct answer contains.

Standard library only and nothing of this package: code that trains a model to pass the checks reads exactly
these questions. Sources: the MiniMax M2.5 and M3 deployment guides for SGLang (the world-series question, the
content parts, the ``get_weather`` tool and its Chinese question); the rest is this project's.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

GREETING: Final = "hello"
"""Any answer with a letter will do."""

SYSTEM: Final = "You are a helpful assistant."
"""The system message of the guides' curl command."""

GUIDE_QUESTION: Final = "Who won the world series in 2020?"
"""The question of the M2.5 guide's curl command."""

GUIDE_ANSWER: Final = "Dodgers"
"""Contained in a correct answer to :data:`GUIDE_QUESTION`."""

COUNT_QUESTION: Final = "Count from one to five."
"""Asked as a stream: its answer is long enough to arrive in several chunks."""

COUNT_ANSWERS: Final[tuple[tuple[str, ...], ...]] = (
    ("one", "two", "three", "four", "five"),
    ("1", "2", "3", "4", "5"),
)
"""Either row, in its order, is contained in a correct answer to :data:`COUNT_QUESTION`."""

TOOL_QUESTION: Final = "What is the weather in Beijing in celsius?"
"""Asked as a stream with :data:`WEATHER_TOOL`."""

TOOL_QUESTION_GUIDE: Final = "北京今天天气怎么样?请用摄氏度。"
"""The M3 guide's own question for the tool, letter for letter; asked without streaming."""

TOOL_NAME: Final = "get_weather"

TOOL_LOCATIONS: Final = ("Beijing", "北京")
"""The argument ``location`` contains one of them ("Beijing, China" is as good)."""

TOOL_UNIT: Final = "celsius"
"""The argument ``unit``, exactly."""

TOOL_QUESTION_SEVERAL: Final = "What is the weather in Beijing and in Shanghai, both in celsius?"
"""Asked with :data:`WEATHER_TOOL`; needs two calls in one answer."""

TOOL_LOCATIONS_SEVERAL: Final = (TOOL_LOCATIONS, ("Shanghai", "上海"))
"""For each of the two calls, in any order: its argument ``location`` contains one of the words."""

TOOL_RESULT: Final = "It is 21 degrees celsius."
"""The tool's pretended result, sent back to the model."""

TOOL_FACT: Final = "21"
"""Contained in an answer that uses :data:`TOOL_RESULT`."""

TOOL_RESULTS_SEVERAL: Final = ("It is 21 degrees celsius.", "It is 25 degrees celsius.")
"""The tool's pretended results for the two calls, in their order."""

TOOL_FACTS_SEVERAL: Final = ("21", "25")
"""An answer that uses :data:`TOOL_RESULTS_SEVERAL` contains both."""

UNICODE_QUESTION: Final = (
    "Say hello to the world in Chinese, then one smiley: 你好 🙂 e\u0301 العربية 👩\u200d👩\u200d👧"
)
"""Characters of two to four bytes in UTF-8, a combining accent, right-to-left letters, a joined emoji."""

UNICODE_ANSWERS: Final = ("你好", "世界", "您好", "🙂", "😊", "😀", "👋")
"""A correct answer to :data:`UNICODE_QUESTION` contains one of them."""

LONG_SYSTEM_RULE: Final = "Rule {number}: answer in the language of the question, and keep to the point.\n"
"""A long system prompt repeats this: agents send thousands of tokens before the first question."""

IMAGE_MARKER_QUESTION: Final = "What colour is this image? The word <image> is text."
"""Asked together with an image: text that looks like an engine's placeholder is not another image."""

CITY_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Beijing", "Shanghai"]},
        "sunny": {"type": "boolean"},
    },
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
"""A schema with few correct answers, each of them short."""

CITY_QUESTION: Final = "Name a city and say whether it is sunny there, as JSON with city and sunny."

CHAT_QUESTION_GUIDE: Final = "请介绍 MiniMax-M3 相比 M2.5 有哪些提升?"
"""The M3 guide's question in its chat example, which sets temperature 1.0 and top_p 0.95."""

STREAM_QUESTION_GUIDE: Final = "请用 Python 实现一个二叉搜索树,包含插入、查找和删除操作。"
"""The M3 guide's question in its streaming example, with the same two settings."""

WEATHER_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City and state, e.g., 'San Francisco, CA'"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location", "unit"],
        },
    },
}
"""The M3 guide's tool, word for word."""

WEATHER_TOOL_ANTHROPIC: Final[dict[str, Any]] = {
    "name": TOOL_NAME,
    "description": WEATHER_TOOL["function"]["description"],
    "input_schema": WEATHER_TOOL["function"]["parameters"],
}
"""The same tool in the format of ``/v1/messages``."""

IMAGE_QUESTION: Final = "What colour is this image?"

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = MappingProxyType(
    {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
)
"""Name of a colour, contained in a correct answer, and its 8-bit RGB."""

IMAGE_SIDE: Final = 112
"""Width and height of the images in pixels: four by four of M3's merged 28-pixel patches."""


def long_system(rules: int) -> str:
    """Return a system prompt with so many rules."""
    return SYSTEM + "\n" + "".join(LONG_SYSTEM_RULE.format(number=number) for number in range(1, rules + 1))


def png(rgb: tuple[int, int, int], side: int = IMAGE_SIDE) -> bytes:
    """Return a square PNG of one colour, ``side`` pixels wide (8-bit RGB, PNG specification, W3C 2003)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    row = b"\0" + bytes(rgb) * side
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * side, 9))
        + chunk(b"IEND", b"")
    )


def image_block(colour: str) -> dict[str, Any]:
    """Return the image of ``colour`` as a content block of ``/v1/messages``."""
    data = base64.b64encode(png(COLOURS[colour])).decode("ascii")
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def image_url(colour: str) -> str:
    """Return the image of ``colour`` (a key of :data:`COLOURS`) as a ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(png(COLOURS[colour])).decode("ascii")


def text_message(role: str, text: str) -> dict[str, Any]:
    """Return a message with string content."""
    return {"role": role, "content": text}


def parts_message(role: str, text: str) -> dict[str, Any]:
    """Return a message with content parts, the way the guides' curl command writes them."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def image_message(colour: str) -> dict[str, Any]:
    """Return the user's message of the image check: question, then image, as in the M3 guide."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": IMAGE_QUESTION},
            {"type": "image_url", "image_url": {"url": image_url(colour)}},
        ],
    }
