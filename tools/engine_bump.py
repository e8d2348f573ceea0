"""Add an SGLang release to the catalogue: read its wheel, lock it with hashes, print what changed.

python tools/engine_bump.py 0.5.24            # adds it; existing hosts stay unchanged
    python tools/engine_bump.py 0.5.24 --default  # new plans use it; then `pytest -m engine` must pass

Everything in the wheel is read from it (Python, torch, parsers, architectures, start commands); CUDA comes
from the lock, where torch includes its runtime. The rest (notes, which formats it runs better) is up to the
author of the change. Exit status: 0 done, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from minimax_metal.catalog import EngineRelease, load_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.plan.argv import DEFAULT_FLAGS, VARIABLES
from minimax_metal.plan.versions import version_key

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.locks import ask, wheels_only

ROOT = Path(__file__).resolve().parents[1]
CATALOG = ROOT / "src" / "minimax_metal" / "catalog"
PYTHONS = ("3.12", "3.11", "3.13", "3.10")
"""Python minor versions tried, best first."""
LEAST_PYTHON = "3.11"
"""Locks start here: the newest releases run on nothing older, and uv installs a newer one anyway."""


@dataclass(frozen=True)
class Wheel:
    """One release's own data."""

    release: str
    requires_python: str
    torch: str
    entrypoints: tuple[str, ...]
    tool_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    architectures: tuple[str, ...]
    plugins: bool
    deep_gemm_precompile: bool
    flashinfer_cubins: bool
    missing_flags: tuple[str, ...]
    """Flags of the plan that the release's sources no longer mention."""


def _named(text: str, table: str) -> tuple[str, ...]:
    """MiniMax names in the dictionary ``table`` of a source file."""
    body = re.search(rf"{table}\b[^{{]*\{{(.*?)\n\s*\}}", text, re.DOTALL)
    return tuple(sorted(set(re.findall(r'"(minimax[\w-]*)"\s*:', body.group(1))))) if body else ()


def read_wheel(tree: Path) -> Wheel:
    """Read an unpacked wheel (a directory with ``sglang`` and its ``dist-info``)."""
    found = sorted(tree.glob("sglang-*.dist-info"))
    if not found:
        raise UserError(f"found no sglang in {tree}, expected an unpacked wheel; give another release")
    metadata = HeaderParser().parsestr((found[0] / "METADATA").read_text(encoding="utf-8"))
    requires = metadata.get_all("Requires-Dist") or []
    torch = next((m.group(1) for one in requires if (m := re.match(r"torch==([\w.]+)", one))), "")
    commands = found[0] / "entry_points.txt"
    serve = commands.exists() and re.search(r"^sglang\s*=", commands.read_text(), re.MULTILINE)
    srt = tree / "sglang" / "srt"
    calls = (srt / "function_call" / "function_call_parser.py").read_text(encoding="utf-8")
    thoughts = (srt / "parser" / "reasoning_parser.py").read_text(encoding="utf-8")
    models = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((srt / "models").glob("minimax*.py"))
    )
    arguments = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [srt / "server_args.py", *sorted((srt / "arg_groups").rglob("*.py"))]
        if path.exists()
    )
    auto = ("auto",) if '["auto"] + ' in arguments else ()
    flags = sorted({*DEFAULT_FLAGS, *VARIABLES, "--enable-metrics"})
    gone = [flag for flag in flags if flag not in arguments and flag[2:].replace("-", "_") not in arguments]
    return Wheel(
        release=str(metadata["Version"]),
        requires_python=str(metadata["Requires-Python"]),
        torch=torch,
        entrypoints=("sglang.launch_server", *(["sglang serve"] if serve else [])),
        tool_parsers=(*auto, *_named(calls, "ToolCallParserEnum")),
        reasoning_parsers=(*auto, *_named(thoughts, "DetectorMap")),
        architectures=tuple(re.findall(r"^class (MiniMax\w+For\w+)\(", models, re.MULTILINE)),
        plugins=(srt / "plugins" / "__init__.py").exists(),
        deep_gemm_precompile=(tree / "sglang" / "compile_deep_gemm.py").exists(),
        flashinfer_cubins=any(re.match(r"flashinfer[-_]cubin\b", one) for one in requires),
        missing_flags=tuple(gone),
    )


def cuda_of_lock(text: str) -> str:
    """Return torch's CUDA version, from a lock: ``nvidia-cuda-runtime==13.0.96`` is 13.0."""
    found = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+\.\d+)", text, re.MULTILINE)
    if not found:
        raise UserError(
            "found no nvidia-cuda-runtime in the lock, expected torch with CUDA; look at the lock"
        )
    return found.group(1)


def allowed(pythons: Sequence[str], requires: str) -> list[str]:
    """Return the Python versions that ``>=3.10``, ``>=3.10,<3.14`` and the like allow."""

    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2])

    def good(python: str) -> bool:
        for part in filter(None, requires.replace(" ", "").split(",")):
            mark, bound = re.fullmatch(r"(>=|<=|<|>|==|!=|~=)([\d.]+)\.?\*?", part).groups()  # type: ignore[union-attr]  # Requires-Python is checked by the index
            ours, theirs = number(python), number(bound)
            if (mark in (">=", "~=") and ours < theirs) or (mark == "<" and ours >= theirs):
                return False
            if (mark == "<=" and ours > theirs) or (mark == "==" and ours != theirs):
                return False
        return True

    return [python for python in pythons if good(python)]


def entry(wheel: Wheel, pythons: Sequence[str], cuda: str, locks: Sequence[str]) -> str:
    """Return the release's entry for engines.yml."""
    lines = [
        f"  {wheel.release}:",
        "    python: [" + ", ".join(f'"{one}"' for one in pythons) + "]",
        f"    torch: {wheel.torch}",
        f'    cuda: "{cuda}"',
        f"    entrypoints: [{', '.join(wheel.entrypoints)}]",
        f"    tool_parsers: [{', '.join(wheel.tool_parsers)}]",
        f"    reasoning_parsers: [{', '.join(wheel.reasoning_parsers)}]",
        f"    architectures: [{', '.join(wheel.architectures)}]",
        *_lock_lines(wheel.release, locks),
        f"    plugins: {str(wheel.plugins).lower()}",
        f"    deep_gemm_precompile: {str(wheel.deep_gemm_precompile).lower()}",
        f"    flashinfer_cubins: {str(wheel.flashinfer_cubins).lower()}",
        f'    source: "wheel sglang-{wheel.release}: METADATA and srt, read by tools/engine_bump.py (V)"',
    ]
    return "\n".join(lines) + "\n"


def _lock_lines(release: str, locks: Sequence[str]) -> list[str]:
    return ["    locks:", *(f'      "{python}": sglang-{release}-py{python}.txt' for python in sorted(locks))]


def add_entry(text: str, wheel: Wheel, pythons: Sequence[str], cuda: str, locks: Sequence[str]) -> str:
    """Return engines.yml with the release in it; for an existing one only the locks are set."""
    head = re.search(rf"^  {re.escape(wheel.release)}:\n(?:    .*\n)+", text, re.MULTILINE)
    if head is None:
        return text.replace("\nengines:\n", "\nengines:\n" + entry(wheel, pythons, cuda, locks), 1)
    body = re.sub(r"    locks:\n(?:      .*\n)+", "", head.group(0))
    new = body.replace("    source:", "\n".join(_lock_lines(wheel.release, locks)) + "\n    source:", 1)
    return text.replace(head.group(0), new, 1)


def changes(old: EngineRelease, wheel: Wheel, cuda: str) -> list[str]:
    """Return the differences from the release that plans use now, one line each."""
    lines = []
    for name, before, after in (
        ("torch", old.torch, wheel.torch),
        ("CUDA", old.cuda, cuda),
        ("entrypoints", old.entrypoints, wheel.entrypoints),
        ("tool parsers", old.tool_parsers, wheel.tool_parsers),
        ("reasoning parsers", old.reasoning_parsers, wheel.reasoning_parsers),
        ("architectures", sorted(old.architectures), sorted(wheel.architectures)),
        ("plug-ins", str(old.plugins), str(wheel.plugins)),
        ("DeepGEMM precompilation", str(old.deep_gemm_precompile), str(wheel.deep_gemm_precompile)),
        ("FlashInfer's cubins", str(old.flashinfer_cubins), str(wheel.flashinfer_cubins)),
    ):
        if list(before) != list(after):
            said = [" ".join(one) if not isinstance(one, str) else one for one in (before, after)]
            lines.append(f"{name}: {said[0]} -> {said[1]}")
    lines += [f"flag {flag} is no longer mentioned, but the plan writes it" for flag in wheel.missing_flags]
    return lines


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else "uv"


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise UserError(f"found that {' '.join(command[:3])} failed: {last}; expected it to work")
    return done.stdout


def overrides(release: str, python: str, directory: Path = CATALOG / "locks") -> Path | None:
    """Return the packages to leave out of a lock for one Python: the release's own file, else the newest
    other release's.
    """
    own = directory / f"sglang-{release}-py{python}.overrides"
    others = sorted(directory.glob(f"sglang-*-py{python}.overrides"), key=lambda p: version_key(p.name[7:]))
    return own if own.exists() else next(reversed(others), None)


def lock(release: str, python: str) -> str:
    """Return a lock with hashes for one Python, from wheels only, without the name of a registry.

    The options are those of ``locks/README.md``; the hashes of source archives, which uv writes too, are
    removed.
    """
    options = ["--quiet", "--only-binary", ":all:", "--generate-hashes", "--no-header"]
    options += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_34"]
    if left_out := overrides(release, python):
        options += ["--override", str(left_out)]
    text = _run(_uv(), "pip", "compile", *options, "-", stdin=f"sglang=={release}\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"sglang-{release}-py{python}.txt"
        path.write_text(text, encoding="utf-8")
        return wheels_only(text, ask(path, python))


def main(argv: Sequence[str] | None = None) -> int:
    """Add the release named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("release", help="an SGLang release, such as 0.5.24")
    parser.add_argument("--python", action="append", help="lock for this Python only (may be repeated)")
    parser.add_argument("--default", action="store_true", help="make it the release that new plans use")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"\d+(\.\d+)+((rc|\.post)\d+)?", arguments.release):
        parser.error(f"found release {arguments.release!r}, expected a version such as 0.5.24")
    catalog = load_catalog()
    old = catalog.engines[catalog.default_engine]
    try:
        with tempfile.TemporaryDirectory() as directory:
            print(f"reading the wheel of sglang {arguments.release}")
            place = ["--target", directory, "--no-deps", "--only-binary", ":all:", "--python-version", "3.12"]
            _run(_uv(), "pip", "install", "--quiet", *place, f"sglang=={arguments.release}")
            wheel = read_wheel(Path(directory))
        pythons = allowed(PYTHONS, wheel.requires_python)
        wanted = [one for one in pythons if int(one.split(".")[1]) >= int(LEAST_PYTHON.split(".")[1])]
        made: dict[str, str] = {}
        for python in arguments.python or wanted:
            print(f"locking it for Python {python}")
            made[python] = lock(arguments.release, python)
        cuda = cuda_of_lock(next(iter(made.values())))
    except UserError as error:
        print(f"engine-bump: {error}", file=sys.stderr)
        return 1
    for python, text in made.items():
        name = f"sglang-{arguments.release}-py{python}"
        (CATALOG / "locks" / f"{name}.txt").write_text(text, encoding="utf-8")
        if left_out := overrides(arguments.release, python):
            (CATALOG / "locks" / f"{name}.overrides").write_bytes(left_out.read_bytes())
    engines = CATALOG / "engines.yml"
    text = add_entry(engines.read_text(encoding="utf-8"), wheel, pythons, cuda, list(made))
    if arguments.default:
        text = re.sub(r"(?m)^default_engine: .*$", f"default_engine: {arguments.release}", text)
    engines.write_text(text, encoding="utf-8")
    try:
        load_catalog()
    except UserError as error:
        print(f"engine-bump: engines.yml is no longer valid: {error}", file=sys.stderr)
        return 1
    differences = changes(old, wheel, cuda)
    print(f"what changes from {old.release}:" if differences else f"nothing changes from {old.release}")
    for line in differences:
        print(f"  {line}")
    print("check the diff of engines.yml and the locks, then run: pytest -m engine tests/contract")
    return 0


if __name__ == "__main__":
    sys.exit(main())
