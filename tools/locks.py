"""Keep only wheels' hashes in a lock, and seal it; or check this.

python tools/locks.py LOCK...          # strip and seal in place
    python tools/locks.py --check LOCK...  # ask the index again, change nothing

``uv pip compile --generate-hashes`` also writes the hashes of a release's source archives, even with
``--only-binary :all:``. With such a hash in a lock, an index that offers only the source archive gets its
build backend run, as root, on every host. So those hashes are removed: the rest is what uv's own resolution
with ``--only-binary :all:`` names (``pylock.toml``, PEP 751). The seal is a comment with a digest of the
hashes: a lock that was made or changed in another way is detected offline. Exit status: 0 done, 1 a lock is
wrong, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from minimax_metal.common.errors import UserError

SEAL = "# Wheels only, by tools/locks.py: "
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\b")
_PYTHON = re.compile(r"-py(\d\.\d+)\.txt$")
LEAST_PYTHON = "3.11"


def hashes(text: str) -> set[str]:
    """The hashes of a lock."""
    return set(_HASH.findall(text))


def seal(text: str) -> str:
    """Return a lock with the seal over its hashes as its first line."""
    digest = hashlib.sha256("\n".join(sorted(hashes(text))).encode()).hexdigest()
    bare = re.sub(rf"^{re.escape(SEAL)}.*\n", "", text, flags=re.MULTILINE)
    return f"{SEAL}{digest}\n{bare}"


def is_sealed(text: str) -> bool:
    """Return whether a lock has exactly its hashes from :func:`wheels_only`."""
    return text.startswith(SEAL) and text == seal(text)


def wheels_only(text: str, wheels: Iterable[str]) -> str:
    """Return a lock with the hashes of wheels only, sealed.

    Args:
        text: a lock as uv writes it, one hash per line.
        wheels: SHA-256 of wheels.

    Raises:
        UserError: a package has no wheel.
    """
    known = set(wheels)
    entries: list[str] = []
    for entry in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE):
        name, pinned, _ = entry.partition("==")
        if not pinned:  # the text before the first package
            entries.append(entry)
            continue
        kept = [one for one in _HASH.findall(entry) if one in known]
        if not kept:
            raise UserError(
                f"found no wheel of {name}, expected one; leave the package out with an override, as "
                "docs/development.md says"
            )
        head = re.split(r"\s*\\\n", entry, maxsplit=1)[0]
        notes = "".join(re.findall(r"^    #.*\n", entry, re.MULTILINE))
        lines = " \\\n".join([head, *(f"    --hash=sha256:{one}" for one in kept)])
        entries.append(f"{lines}\n{notes}")
    return seal("".join(entries))


def ask(lock: Path, python: str) -> set[str]:
    """Return the hashes of all wheels, for any platform, of the packages in a lock, from the index.

    Raises:
        UserError: uv can't resolve the lock from wheels.
    """
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else "uv"
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "pylock.toml"
        command = [
            program, "pip", "compile", str(lock), "--no-deps", "--universal", "--only-binary", ":all:",
            "--quiet", "--no-header", "--python-version", python, "--format", "pylock.toml",
            "--output-file", str(output),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.split())[-400:]
            raise UserError(f"found that uv can't resolve {lock.name} from wheels ({said}), expected wheels")
        packages = tomllib.loads(output.read_text(encoding="utf-8")).get("packages", [])
    return {str(wheel["hashes"]["sha256"]) for one in packages for wheel in one.get("wheels", [])}


def main(argv: Sequence[str] | None = None) -> int:
    """Strip or check the locks named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lock", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true", help="only report hashes that are not a wheel's")
    arguments = parser.parse_args(argv)
    status = 0
    for lock in arguments.lock:
        named = _PYTHON.search(lock.name)
        text = lock.read_text(encoding="utf-8")
        try:
            new = wheels_only(text, ask(lock, named[1] if named else LEAST_PYTHON))
        except UserError as error:
            print(f"locks: {lock}: {error}", file=sys.stderr)
            status = 1
            continue
        gone = len(hashes(text)) - len(hashes(new))
        print(f"{lock}: {len(hashes(new))} hashes of wheels, {gone} others")
        if arguments.check:
            status |= int(gone > 0 or not is_sealed(text))
        elif new != text:
            lock.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
