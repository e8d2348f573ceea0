"""Locks contain hashes of wheels and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minimax_metal.catalog.load import HERE
from minimax_metal.common.errors import UserError
from tools import locks

REPOSITORY = Path(__file__).parents[2]
LOCKS = sorted([*(REPOSITORY / "requirements").glob("*.txt"), *(HERE / "locks").glob("*.txt")])
WHEEL, SOURCE = "a" * 64, "b" * 64
LOCK = f"""\
one==1.0 \\
    --hash=sha256:{WHEEL} \\
    --hash=sha256:{SOURCE}
    # via two
two==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:{"c" * 64}
"""


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_lock_holds_hashes_of_wheels_only(lock: Path) -> None:
    text = lock.read_text()
    assert locks.is_sealed(text), f"run tools/locks.py {lock.relative_to(REPOSITORY)}"
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._\[\]-]+==\S+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert not re.search(r"https?://|@ |--(find-links|index-url|extra-index-url|no-binary)", text)


def test_hashes_of_source_archives_are_taken_out() -> None:
    text = locks.wheels_only(LOCK, {WHEEL, "c" * 64})
    assert SOURCE not in text
    assert text.splitlines()[1:] == [
        "one==1.0 \\",
        f"    --hash=sha256:{WHEEL}",
        "    # via two",
        "two==2.0 ; python_full_version < '3.12' \\",
        f"    --hash=sha256:{'c' * 64}",
    ]
    assert locks.is_sealed(text)
    assert locks.wheels_only(text, {WHEEL, "c" * 64}) == text


def test_a_lock_that_changed_since_is_found() -> None:
    text = locks.wheels_only(LOCK, {WHEEL, "c" * 64})
    assert not locks.is_sealed(LOCK)
    assert not locks.is_sealed(text.replace(WHEEL, SOURCE))
    assert not locks.is_sealed(text + f"    --hash=sha256:{SOURCE}\n")


def test_a_package_without_a_wheel_is_refused() -> None:
    with pytest.raises(UserError, match="found no wheel of two"):
        locks.wheels_only(LOCK, {WHEEL})
