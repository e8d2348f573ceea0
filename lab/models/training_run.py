"""Train a tiny model in the engine's environment, or take it from the cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from lab.engine import environment
from lab.engine.environment import cache_root, lock_digest
from lab.models.description import LICENCE, TinyModel
from lab.models.dialogues import FALLBACK, dialogues

SCRIPTS = Path(__file__).parent / "training"


class TrainingError(RuntimeError):
    """A model could not be trained, or does not say what it was taught; the message is one line for users."""


def trained(model: TinyModel) -> Path:
    """Return the folder with the files of ``model``'s repository; train it when the cache has none.

    The cache's key covers everything the result depends on: scripts, dialogues, engine lock. A folder is in
    its place only when the training script has proved every answer.

    Raises:
        TrainingError: training failed.
        EnvironmentBuildError: the engine's environment could not be made.
    """
    content = json.dumps(
        {"dialogues": dialogues(images=model.images), "fallback": FALLBACK}, ensure_ascii=False, indent=1
    )
    home = cache_root() / "models" / f"{model.name}-{_key(content)}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f".{model.name}.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # two labs may ask at once; the kernel lets go when this process ends
        if not home.is_dir():
            scratch = home.with_name(f".{home.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            _train(model, content, scratch)
            _describe(model, scratch)
            scratch.rename(home)
    return home


def _key(content: str) -> str:
    digest = hashlib.sha256(f"{lock_digest()}\n{content}\n".encode())
    for path in (*sorted(SCRIPTS.glob("*.py")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _train(model: TinyModel, content: str, out: Path) -> None:
    python = environment()
    given = out.with_name(f"{out.name}.json")
    given.write_text(content, encoding="utf-8")
    settings = {
        # One thread: the models are so small that a second one only waits, and two models train at once.
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, SCRIPTS / f"{model.script}.py", given, out],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    given.unlink()
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise TrainingError(
            f"training the tiny {model.name} ended with {done.returncode}: "
            + (lines[-1] if lines else "it printed nothing")
        )


def _describe(model: TinyModel, out: Path) -> None:
    """Add what a repository on a hub holds beside the model: a card, and the attributes of git LFS."""
    card = (
        f"---\nlicense: {LICENCE}\nlibrary_name: transformers\n---\n\n# A tiny {model.name}\n\n"
        f"Stands for {model.name} in a lab: its architecture and file formats, two layers, a few dialogues.\n"
    )
    (out / "README.md").write_text(card)
    patterns = ("*.safetensors", "tokenizer.json")
    (out / ".gitattributes").write_text(
        "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns)
    )
