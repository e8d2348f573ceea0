"""Query an endpoint with LiteLLM through both interfaces: ``litellm_client.py BASE_URL MODEL
QUESTIONS.json``.

Runs in its own environment. The key comes from the variable OPENAI_API_KEY. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import litellm

base, model = sys.argv[1:3]
ask = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
key = os.environ["OPENAI_API_KEY"]
litellm.telemetry = False


def complete(content: Any, **more: Any) -> Any:
    """Ask the way LiteLLM asks an OpenAI-compatible endpoint."""
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return litellm.completion(
        model=f"openai/{model}",
        api_base=f"{base}/v1",
        api_key=key,
        messages=messages,
        temperature=0,
        max_tokens=256,
        num_retries=0,
        **more,
    )


seen: dict[str, Any] = {"greeting": complete(ask["greeting"]).choices[0].message.content}
chunks = list(complete(ask["count"], stream=True))
seen["streamed"] = litellm.stream_chunk_builder(chunks).choices[0].message.content
called = complete(ask["weather"], tools=[ask["tool"]], tool_choice="auto").choices[0].message
seen["given"] = json.loads(called.tool_calls[0].function.arguments)
result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": ask["result"]}
turns = [{"role": "user", "content": ask["weather"]}, called.model_dump(exclude_none=True), result]
seen["tool"] = complete(turns, tools=[ask["tool"]]).choices[0].message.content
said = litellm.completion(
    model=f"anthropic/{model}",
    api_base=base,
    api_key=key,
    messages=[{"role": "user", "content": ask["greeting"]}],
    max_tokens=256,
    num_retries=0,
)
seen["messages"] = said.choices[0].message.content
print(json.dumps(seen, ensure_ascii=False))
