"""What lab hosts inherit of this machine's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.hosts import apt, description, environment
from lab.hosts.errors import LabError

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
# between two fields
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main

Types: deb
URIs: https://vendor.example/tool
Suites: bookworm
Components: main
Signed-By: /etc/apt/keyrings/vendor.gpg
"""


def test_only_debians_own_sources_are_passed_on_with_the_other_code_name() -> None:
    text = apt.debian_sources(apt.parse_deb822(DEB822), "bookworm", "trixie")
    assert text == (
        "Types: deb\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: trixie trixie-updates\n"
        "Components: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        "\n"
        "Types: deb\n"
        "URIs: http://mirror.example/debian-security\n"
        "Suites: trixie-security\n"
        "Components: main\n"
    )


def test_one_line_sources() -> None:
    lines = (
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        "http://mirror.example/debian bookworm main non-free # why\n"
        "# deb http://mirror.example/debian bookworm-backports main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb cdrom:[disc]/ bookworm main\n"
    )
    text = apt.debian_sources(apt.parse_list(lines), "bookworm", "bookworm")
    assert text.count("URIs:") == 1
    assert "Suites: bookworm\n" in text


@pytest.mark.parametrize("uri", ["file:/srv/debian", "http://localhost:3142/debian", "http://127.0.0.1/d"])
def test_sources_that_exist_only_here_are_no_sources(uri: str) -> None:
    with pytest.raises(LabError, match="no source of Debian bookworm"):
        apt.debian_sources(apt.parse_list(f"deb {uri} bookworm main\n"), "bookworm", "trixie")


def test_settings_say_how_to_fetch_and_nothing_else() -> None:
    dump = (
        'APT::Install-Recommends "0";\n'
        'Acquire::Check-Valid-Until "false";\n'
        'Acquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::https::Proxy "http://127.0.0.1:3128";\n'
        'Acquire::http::Proxy-Auto-Detect "/usr/bin/detect";\n'
        'Acquire::https::SslKey "/etc/ssl/private/key";\n'
        'Acquire::http "";\n'
    )
    assert apt.settings(dump) == [
        'Acquire::Check-Valid-Until "false";',
        'Acquire::http::Proxy "http://proxy.example:3128";',
    ]


def test_a_loopback_resolver_is_replaced_by_the_list_behind_it(tmp_path: Path) -> None:
    stub, behind = tmp_path / "stub", tmp_path / "behind"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    behind.write_text("# upstream\nnameserver 192.0.2.53\nsearch example\n")
    assert environment.resolver((stub, behind)) == ("nameserver 192.0.2.53\nsearch example\n", ["192.0.2.53"])
    with pytest.raises(LabError, match="no name server"):
        environment.resolver((stub,))


def test_indexes_that_exist_only_here_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = tmp_path / "pip.conf"
    pip.write_text(
        "[global]\n"
        "index-url = https://index.example/simple\n"
        "find-links = /opt/wheels\n"
        "extra-index-url = file:///opt/simple https://more.example/simple\n"
    )
    monkeypatch.setattr(environment, "PIP_FILES", (pip,))
    monkeypatch.setattr(environment, "UV_FILES", ())
    settings = environment.pip_settings({})
    assert settings == {
        "index-url": "https://index.example/simple",
        "extra-index-url": "https://more.example/simple",
    }
    assert environment.uv_indexes(settings, {}) == {
        "default": ["https://index.example/simple"],
        "extra": ["https://more.example/simple"],
    }
    named = {"UV_DEFAULT_INDEX": "https://uv.example/simple"}
    assert environment.uv_indexes(settings, named)["default"] == ["https://uv.example/simple"]


def test_hosts_reach_the_lab_without_the_proxy() -> None:
    found = environment.variables(
        ["198.18.9.2", "198.18.9.11"], False, {"HTTPS_PROXY": "http://proxy.example:3128"}
    )
    assert found == {
        "https_proxy": "http://proxy.example:3128",
        "no_proxy": "198.18.9.2,198.18.9.11,localhost,127.0.0.1",
    }
    assert environment.variables(["198.18.9.2"], False, {"https_proxy": "http://127.0.0.1:3128"}) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hosts: {}", "hosts: Dictionary should have at least 1 item"),
        ("hosts: {GPU: {system: debian-12}}", "host name 'GPU'"),
        ("hosts: {gpu01: {system: debian-12, gpu: 4}}", "hosts.gpu01.gpu: Extra inputs"),
        ("hosts: [", "not YAML"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lab.yml").write_text(text)
    with pytest.raises(LabError, match=r"lab\.yml") as error:
        description.load("any", tmp_path / "lab.yml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_lab_names_those_there_are() -> None:
    with pytest.raises(LabError, match=r"known labs are .*demo, driver, "):
        description.load("nowhere")
