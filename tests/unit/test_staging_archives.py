"""The distribution's sources, redirected to a mirror or a cache and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimax_metal.controller.adapter import plan_host
from minimax_metal.plan.archives import MARK, decide, redirect, restore
from minimax_metal.plan.model import Plan
from tests.unit.test_plan_contract import raw

CACHE = "http://10.0.0.5:8642"
DEB822 = """\
# Written by the installer
Types: deb deb-src
URIs: http://archive.example.org/debian
Suites: bookworm bookworm-updates
Components: main non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example.org/debian-security/
Suites: bookworm-security
Components: main

Types: deb
URIs: https://packages.example.com/docker
Suites: stable
Components: main
"""
ONE_LINE = """\
deb http://archive.example.org/debian bookworm main contrib
deb [arch=amd64 signed-by=/k.gpg] http://security.example.org/debian-security bookworm-security main  # safe
# deb http://archive.example.org/debian sid main
deb [arch=amd64] https://packages.example.com/docker bookworm-docker stable
deb-src http://archive.example.org/debian bookworm main
"""


def made(**variables: Any) -> Plan:
    return plan_host("gpu01", {"metal_model": "MiniMax-M2.5", **variables}, raw("H20", 4))


def sources(content: str, path: str = "/etc/apt/sources.list.d/debian.sources") -> list[dict[str, str]]:
    return [{"path": path, "content": content}]


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    assert decide(sources(DEB822), made()) == {"files": [], "origins": [], "problem": None}


def test_a_cache_gets_the_hosts_own_archives_and_no_others() -> None:
    found = decide(sources(DEB822), made(metal_cache_url=CACHE))
    (file,) = found["files"]
    lines = file["content"].splitlines()
    assert f"URIs: {CACHE}/apt/http/archive.example.org/debian" in lines
    assert f"URIs: {CACHE}/apt/http/security.example.org/debian-security" in lines
    assert "URIs: https://packages.example.com/docker" in lines
    assert found["origins"] == [
        "http://archive.example.org/debian",
        "http://security.example.org/debian-security",
    ]
    # What apt trusts is not touched.
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in lines
    assert "Check-Valid-Until" not in file["content"]
    assert restore(file["content"]) == DEB822


def test_one_line_sources_keep_their_options() -> None:
    (file,) = decide(sources(ONE_LINE, "/etc/apt/sources.list"), made(metal_cache_url=CACHE))["files"]
    lines = file["content"].splitlines()
    assert f"deb {CACHE}/apt/http/archive.example.org/debian bookworm main contrib" in lines
    secured = f"{CACHE}/apt/http/security.example.org/debian-security bookworm-security main  # safe"
    assert f"deb [arch=amd64 signed-by=/k.gpg] {secured}" in lines
    assert "deb [arch=amd64] https://packages.example.com/docker bookworm-docker stable" in lines
    assert "deb-src http://archive.example.org/debian bookworm main" in lines
    assert restore(file["content"]) == ONE_LINE


def test_a_mirror_has_its_own_place_for_security() -> None:
    (file,) = decide(sources(DEB822), made(metal_mirrors="china"))["files"]
    assert "URIs: https://mirrors.tuna.tsinghua.edu.cn/debian\n" in file["content"]
    assert "URIs: https://mirrors.tuna.tsinghua.edu.cn/debian-security\n" in file["content"]


def test_lists_past_their_time_count_only_where_that_was_said() -> None:
    for where in ({"metal_mirrors": "http://c.example.net:8643"}, {"metal_mirrors": "china"}):
        (file,) = decide(sources(DEB822), made(**where))["files"]
        assert "Check-Valid-Until" not in file["content"]
    frozen = {"metal_mirrors": "http://c.example.net:8643", "metal_frozen_sources": True}
    (file,) = decide(sources(DEB822), made(**frozen))["files"]
    assert file["content"].count("\nCheck-Valid-Until: no\n") == 2
    assert restore(file["content"]) == DEB822


@pytest.mark.parametrize("content", [DEB822, ONE_LINE])
def test_going_from_one_place_to_another_and_back_leaves_nothing(content: str) -> None:
    path = "/etc/apt/sources.list" + ("" if content is ONE_LINE else ".d/x.sources")
    current = content
    for variables in ({"metal_cache_url": CACHE}, {"metal_mirrors": "http://c.example.net:8643"},
                      {"metal_mirrors": "china"}):  # fmt: skip
        (file,) = decide(sources(current, path), made(**variables))["files"]
        current = file["content"]
        assert decide(sources(current, path), made(**variables))["files"] == []
    (file,) = decide(sources(current, path), made())["files"]
    assert file["content"] == content


def test_ubuntu_has_security_in_the_same_archive() -> None:
    noble = 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
    plan = plan_host("u", {"metal_model": "MiniMax-M2.5", "metal_mirrors": "china"}, raw("H20", 4, noble))
    content = (
        "Types: deb\nURIs: http://security.example.org/ubuntu/\nSuites: noble-security\nComponents: main\n"
    )
    (file,) = decide(sources(content), plan)["files"]
    assert "URIs: https://mirrors.tuna.tsinghua.edu.cn/ubuntu\n" in file["content"]


def test_a_list_of_mirrors_is_followed_and_what_cannot_be_is_said() -> None:
    content = (
        "Types: deb\nURIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n"
    )
    lists = [{"path": "/etc/apt/mirrors/debian.list", "content": "https://cdn.example.org/debian\n"}]
    found = decide([*sources(content), *lists], made(metal_cache_url=CACHE))
    assert found["origins"] == ["https://cdn.example.org/debian"]
    assert f"URIs: {CACHE}/apt/https/cdn.example.org/debian" in found["files"][0]["content"]
    problem = decide(sources(content), made(metal_cache_url=CACHE))["problem"]
    assert problem.startswith("found the source mirror+file:/etc/apt/mirrors/debian.list in /etc/apt/")
    assert problem.endswith("set metal_distribution_mirror_url")


LINES = st.lists(
    st.one_of(
        st.sampled_from(DEB822.splitlines() + ONE_LINE.splitlines()),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30),
    ),
    max_size=12,
)


@given(LINES, st.booleans(), st.booleans())
def test_whatever_a_file_holds_it_comes_back(lines: list[str], deb822: bool, stale: bool) -> None:
    text = "".join(line + "\n" for line in lines if not line.startswith(MARK))
    there = redirect(
        text, deb822=deb822, codename="bookworm", address=lambda uri, suite: f"{CACHE}/x", stale=stale
    )
    assert restore(there) == text
    again = redirect(
        there, deb822=deb822, codename="bookworm", address=lambda uri, suite: f"{CACHE}/x", stale=stale
    )
    assert again == there
