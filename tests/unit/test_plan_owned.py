"""What the roles' lists say of removal, on any host and without its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.owned import removable_of
from minimax_metal.plan.owned import WISHES, removable
from minimax_metal.plan.removal import removal

ROLES = Path(__file__).parents[2] / "roles"
OWNED = removable_of(ROLES)


def of(variables: dict[str, Any] | None = None, **raw: Any) -> Any:
    return removable({"demo": (raw, variables or {})})


def test_an_entry_goes_with_its_list_unless_it_says_otherwise() -> None:
    found = of(
        removal="driver",
        files=[
            {"path": "/etc/a"},
            {"path": "/etc/b", "removal": "records"},
            {"path": "/etc/c", "removal": "never"},
        ],
        remains=["/var/d", {"path": "/var/e", "removal": "caches"}],
        units=[{"name": "a.service"}, {"name": "b.service", "removal": "never"}],
    )
    assert found.paths_with("driver") == ["/etc/a", "/var/d"]
    assert found.paths_with("records", "caches") == ["/etc/b", "/var/e"]
    assert (found.wish_of("a.service"), found.wish_of("b.service")) == ("driver", None)
    assert of(files=[{"path": "/etc/a"}]).paths == (("/etc/a", "always"),)


def test_what_depends_on_the_plan_says_what_it_is_on_any_host() -> None:
    """Plain variables of the role are filled in; below a directory of the list no name is needed."""
    variables = {"__root": "/opt/demo", "__venv": "{{ __root }}/{{ digest[:12] }}", "__key": "/etc/key"}
    found = of(
        variables,
        files=[
            {"path": "{{ __root }}"},
            {"path": "{{ __venv }}/lock"},
            {"path": "{{ __key }}"},
            {"path": "/etc/{{ item }}", "removal_path": ["/etc/x-*", "/etc/y"]},
        ],
        units=[
            {"name": "{{ item }}", "each": ["a.service", "b.service"]},
            {"name": "{{ item.unit }}", "removal_name": "sglang@*.service"},
        ],
    )
    assert [path for path, _ in found.paths] == ["/opt/demo", "/etc/key", "/etc/x-*", "/etc/y"]
    assert [unit for unit, _ in found.units] == ["a.service", "b.service", "sglang@*.service"]
    assert found.wish_of("sglang@m.service") == "always"
    assert found.wish_of("sglang.service") is None


@pytest.mark.parametrize(
    "raw",
    [
        {"files": [{"path": "/etc/{{ metal_plan.x }}"}]},
        {"units": [{"name": "{{ item }}", "each": "{{ metal_plan.units }}"}]},
        {"remains": ["{{ x }}"]},
        {"removal": "sometimes", "files": [{"path": "/etc/x"}]},
        {"files": [{"path": "/etc/x", "removal": "sometimes"}]},
    ],
)
def test_a_list_that_does_not_say_it_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^demo: found "):
        of(**raw)


def test_with_every_wish_nothing_of_any_list_stays() -> None:
    """A path or a unit that is cut from a list, or from the removal, is missed here and on the host."""
    wishes = {"caches": True, "records": True, "driver": True, "gateway": True, "artefact_cache": True}
    units = [unit.replace("*", "x") for unit, _ in OWNED.units]
    gone = removal(units, (), (), wishes, OWNED)
    assert {path for path, _ in OWNED.paths} <= set(gone.paths)
    assert set(units) <= set(gone.units)


@pytest.mark.parametrize("wish", sorted(WISHES - {"always", "never", "tools", "firewall"}))
def test_without_its_wish_nothing_of_it_goes(wish: str) -> None:
    wishes = {"caches": True, "records": True, "driver": True, "gateway": True, "artefact_cache": True}
    units = [unit.replace("*", "x") for unit, _ in OWNED.units]
    gone = removal(units, (), (), wishes | {wish: False}, OWNED)
    assert not set(OWNED.paths_with(wish)) & set(gone.paths)
    assert not [unit for unit in gone.units if OWNED.wish_of(unit) == wish]
