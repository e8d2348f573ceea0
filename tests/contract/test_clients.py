"""Third-party clients against the real engine with the guard: Node's SDKs, LiteLLM, an agent.

Each is the published package, locked in ``tests/contract/clients``. The agent is mini-swe-agent: it runs the
commands in the model's answers, in a directory of the test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import cache_root
from lab.models.dialogues import HELLO, SHELL_TASK, SUBMIT, TOOL_ANSWER
from minimax_metal.host.check import questions
from tests.support.supervised import PUBLISHED, supervising

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CLIENTS = Path(__file__).parent / "clients"
REPOSITORY = Path(__file__).parents[2]
MODEL = "MiniMax-M2.5"
CANARY = "canary-4f1d9a7c"
COUNTED = "one, two, three, four, five"
BEIJING = {"location": "Beijing", "unit": "celsius"}


@dataclass(frozen=True)
class Served:
    """A running engine: its URL, a file with the questions, and the clients' environment."""

    url: str
    questions: Path
    environment: dict[str, str]

    def ask(self, *command: str | Path, directory: Path | None = None) -> Any:
        """Run a client and return the JSON that it prints."""
        done = subprocess.run(
            [*map(str, command), self.url, PUBLISHED[MODEL], str(self.questions)],
            env=self.environment,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    asked = folder / "questions.json"
    content = {
        "greeting": questions.GREETING,
        "count": questions.COUNT_QUESTION,
        "weather": questions.TOOL_QUESTION,
        "tool": questions.WEATHER_TOOL,
        "anthropic_tool": questions.WEATHER_TOOL_ANTHROPIC,
        "result": questions.TOOL_RESULT,
        "city": questions.CITY_QUESTION,
        "schema": questions.CITY_SCHEMA,
    }
    asked.write_text(json.dumps(content), encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OPENAI_API_KEY": CANARY,
        "ANTHROPIC_API_KEY": CANARY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices from the internet
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_GLOBAL_CONFIG_DIR": str(folder / "agent"),
        "MSWEA_SILENT_STARTUP": "1",
    }
    with supervising(folder, CANARY) as start:
        yield Served(start(MODEL, "minimax-m2", "minimax"), asked, environment)


@pytest.fixture(scope="module")
def node() -> Path:
    """Return a directory with the clients of package-lock.json beside the scripts that use them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        subprocess.run(
            [REPOSITORY / "scripts/install-system-packages", CLIENTS / "system-packages.txt"], check=True
        )
    place = cache_root() / "clients" / "node"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "openai_client.mjs", "anthropic_client.mjs"):
        shutil.copy(CLIENTS / name, place)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, check=True)
    return place


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the Python of an environment with what requirements.txt locks."""
    place = cache_root() / "clients" / "python"
    uv = REPOSITORY / ".venv" / "bin" / "uv"
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", place], check=True)
    subprocess.run(
        [
            *(uv, "pip", "sync", "--quiet", "--require-hashes", "--only-binary=:all:"),
            *("--python", place / "bin" / "python", CLIENTS / "requirements.txt"),
        ],
        check=True,
    )
    return place / "bin" / "python"


def test_openai_for_node(served: Served, node: Path) -> None:
    seen = served.ask("node", "openai_client.mjs", directory=node)
    assert seen["models"] == [PUBLISHED[MODEL]]
    assert (seen["greeting"], seen["second"], seen["streamed"]) == (HELLO, COUNTED, COUNTED)
    assert seen["usage"] > 0
    assert (seen["given"], seen["tool"]) == (BEIJING, TOOL_ANSWER)
    assert set(seen["shaped"]) == {"city", "sunny"}
    assert seen["wrong_key"] == 401


def test_anthropic_for_node_with_its_own_header(served: Served, node: Path) -> None:
    seen = served.ask("node", "anthropic_client.mjs", directory=node)
    assert (seen["greeting"], seen["second"], seen["streamed"]) == (HELLO, COUNTED, COUNTED)
    assert (seen["stop_reason"], seen["given"], seen["tool"]) == ("tool_use", BEIJING, TOOL_ANSWER)
    assert (seen["wrong_key"], seen["wrong_model"]) == (401, 404)


def test_litellm_by_both_interfaces(served: Served, python: Path) -> None:
    seen = served.ask(python, CLIENTS / "litellm_client.py")
    assert (seen["greeting"], seen["streamed"]) == (HELLO, COUNTED)
    assert (seen["given"], seen["tool"]) == (BEIJING, TOOL_ANSWER)
    assert seen["messages"] == HELLO


def test_an_agent_works_and_submits(served: Served, python: Path, tmp_path: Path) -> None:
    trajectory = tmp_path / "trajectory.json"
    done = subprocess.run(
        [
            *(python.parent / "mini", "--yolo", "--exit-immediately", "--task", SHELL_TASK),
            *("--model", f"openai/{PUBLISHED[MODEL]}", "--model-class", "litellm_textbased"),
            *("--config", CLIENTS / "agent.yaml"),
            *("--config", f"model.model_kwargs.api_base={served.url}/v1"),
            *("--config", "model.model_kwargs.temperature=0"),
            *("--output", trajectory),
        ],
        env={**served.environment, "TERM": "dumb"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    story = json.loads(trajectory.read_text())
    said = [str(message["content"]) for message in story["messages"] if message["role"] == "assistant"]
    assert len(said) == 2, said
    assert "echo $((20 + 1))" in said[0]
    assert SUBMIT in said[1]
    assert any("Result: 21" in str(message["content"]) for message in story["messages"])
