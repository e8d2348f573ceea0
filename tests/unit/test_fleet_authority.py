"""The fleet's own certificate authority: what it creates, keeps, renews and refuses."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.controller.keys.authority import HOST_DAYS, issued

NAMES = ["gpu01", "10.0.0.7", "llm.example.net", "localhost", "127.0.0.1", "::1"]
NOW = datetime.datetime.now(datetime.UTC)


def later(days: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=days)


def reach(tmp_path: Path, name: str, ca: str, directory: Path) -> str:
    """Do a handshake with a server of the host's certificate as ``name``; return the protocol's version."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "host-gpu01.crt", directory / "host-gpu01.key")
    client = ssl.create_default_context(cadata=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                try:
                    server.wrap_socket(accepted, server_side=True).close()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), 10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                return secure.version() or ""
        finally:
            thread.join(10)


def test_a_client_that_trusts_the_ca_reaches_the_host_by_each_of_its_names(tmp_path: Path) -> None:
    made = issued(tmp_path / "tls", "gpu01", NAMES)
    for name in NAMES:
        assert reach(tmp_path, name, made.ca, tmp_path / "tls").startswith("TLS"), name
    with pytest.raises(ssl.SSLCertVerificationError):
        reach(tmp_path, "gpu02", made.ca, tmp_path / "tls")
    other = issued(tmp_path / "other", "gpu01", NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        reach(tmp_path, "gpu01", other.ca, tmp_path / "tls")


def test_a_second_run_changes_nothing_and_files_are_the_owners(tmp_path: Path) -> None:
    first = issued(tmp_path / "tls", "gpu01", NAMES)
    assert issued(tmp_path / "tls", "gpu01", NAMES) == first
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    for name in ("ca.key", "ca.crt", "host-gpu01.key", "host-gpu01.crt"):
        assert (tmp_path / "tls" / name).stat().st_mode & 0o777 == 0o600, name


def test_the_key_of_the_ca_is_in_no_answer(tmp_path: Path) -> None:
    made = issued(tmp_path / "tls", "gpu01", NAMES)
    secret = (tmp_path / "tls" / "ca.key").read_text().splitlines()[1]
    assert secret not in "".join((made.certificate, made.key, made.ca, made.until))
    (tmp_path / "tls" / "ca.crt").write_text("half")
    with pytest.raises(UserError) as told:
        issued(tmp_path / "tls", "gpu01", NAMES)
    assert secret not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_certificate_is_renewed_with_less_than_a_third_left(tmp_path: Path) -> None:
    first = issued(tmp_path / "tls", "gpu01", NAMES, now=NOW)
    assert issued(tmp_path / "tls", "gpu01", NAMES, now=later(HOST_DAYS * 0.6)) == first
    renewed = issued(tmp_path / "tls", "gpu01", NAMES, now=later(HOST_DAYS * 0.7))
    assert renewed.ca == first.ca
    assert renewed.until > first.until
    assert renewed.key != first.key


def test_other_names_a_foreign_key_and_a_lost_authority_make_it_anew(tmp_path: Path) -> None:
    place = tmp_path / "tls"
    first = issued(place, "gpu01", NAMES)
    named = issued(place, "gpu01", [*NAMES, "10.0.0.8"])
    assert named.ca == first.ca
    assert named.certificate != first.certificate
    (place / "host-gpu01.key").write_text(issued(place, "gpu02", NAMES).key)
    assert issued(place, "gpu01", NAMES).key not in {first.key, named.key}
    kept = issued(place, "gpu01", NAMES)
    for name in ("ca.key", "ca.crt"):
        (place / name).unlink()
    anew = issued(place, "gpu01", NAMES)
    assert anew.ca != kept.ca
    assert anew.certificate != kept.certificate
    assert reach(tmp_path, "gpu01", anew.ca, place).startswith("TLS")


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_half_an_authority_is_refused_in_one_line(tmp_path: Path, lost: str) -> None:
    issued(tmp_path / "tls", "gpu01", NAMES)
    (tmp_path / "tls" / lost).unlink()
    with pytest.raises(UserError, match=f"found no .*{lost}, expected .*complete.*; restore both"):
        issued(tmp_path / "tls", "gpu01", NAMES)


def test_an_authority_that_others_read_is_at_its_end_or_is_another_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "tls"
    issued(place, "gpu01", NAMES, now=NOW)
    with pytest.raises(UserError, match="which ends on"):
        issued(place, "gpu01", NAMES, now=later(3650))
    (place / "ca.key").chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640.*chmod 600"):
        issued(place, "gpu01", NAMES)
    issued(tmp_path / "other", "gpu01", NAMES)
    (place / "ca.key").chmod(0o600)
    (place / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(UserError, match="that don't match"):
        issued(place, "gpu01", NAMES)


def test_check_mode_writes_nothing_and_hosts_at_once_share_one_authority(tmp_path: Path) -> None:
    assert issued(tmp_path / "tls", "gpu01", NAMES, keep=False).certificate
    assert not (tmp_path / "tls").exists()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: issued(tmp_path / "tls", f"gpu{n:02}", []), range(8)))
    assert len({one.ca for one in made}) == 1


@pytest.mark.parametrize("name", ["../../etc/x", "a b", "gpu01\n", "*", "/"])
def test_what_is_not_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="expected"):
        issued(tmp_path / "tls", name, [])
    with pytest.raises(UserError, match="expected"):
        issued(tmp_path / "tls", "gpu01", [name])
