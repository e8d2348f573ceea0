"""A bundle contains no secrets, and no names of the site if that was requested."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest

from minimax_metal.host.accept import bundle
from minimax_metal.host.accept.machine import Answer
from minimax_metal.host.accept.redaction import Redaction, secrets_of_host
from tests.support.acceptance import fake, host, published

KEY = "CANARYuserkey0123456789abcdefghij"
ADMIN = "CANARYadminkey0123456789abcdefgh"
TOKEN = "hf_CANARYtokenCANARYtokenCANARYtok"
NAMED = "CANARY-of-a-variable-named-like-a-secret"
PASSWORD = "CANARYproxypassword"
PEM = "-----BEGIN PRIVATE KEY-----\nMIICANARYCANARYCANARY\n-----END PRIVATE KEY-----"
SERIAL = "1654423001593"
UUID = "GPU-b42dd28e-ffdd-8720-1df0-98bd8cdc05b1"
ADDRESS, ADDRESS6, MAC, NAME = "10.20.30.40", "fd12:3456:789a::40", "a0:36:9f:11:22:33", "gpu07.example.net"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """`/etc/sglang` of a host, as role sglang_service writes it."""
    place = tmp_path / "etc" / "minimax-m2.5"
    place.mkdir(parents=True)
    (place / "api_key").write_text(f"{KEY}\n")
    (place / "admin_api_key").write_text(f"{ADMIN}\n")
    (place / "engine.yaml").write_text(f'api-key: "{KEY}"\nadmin-api-key: "{ADMIN}"\n')
    tokens = tmp_path / "etc" / "tokens"
    tokens.mkdir()
    (tokens / "huggingface").write_text(f"{TOKEN}\n")
    (tokens / "settings.json").write_text('{\n  "revision": "5c594f14c15e43bbd67bd47895c56b71f802a403",\n'
                                          '  "served": "MiniMaxAI/MiniMax-M2.5"\n}\n')  # fmt: skip
    return tmp_path / "etc"


def planted() -> dict[str, str]:
    """Texts that a host may have, each with canaries."""
    context = host("H20", 4)
    machine = fake(context)
    machine.answers |= {
        "systemctl cat": Answer(0, f"[Service]\nEnvironment=MY_TOKEN={NAMED}\n"),
        "systemctl show": Answer(
            0, f"Environment=MY_TOKEN={NAMED} HTTPS_PROXY=http://me:{PASSWORD}@proxy:3128\n"
        ),
        "journalctl": Answer(
            0,
            f"server_args=ServerArgs(api_key='{KEY}', admin_api_key='{ADMIN}')\n"
            f"Authorization: Bearer {KEY}\nfrom {ADDRESS}:51234 and {ADDRESS6} via {MAC} at {NAME}\n"
            f"login with {TOKEN}\n{PEM}\n12:34:56 metal 0000:18:00.0 driver 580.126.20 4.19.0.1\n",
        ),
        "nvidia-smi -q": Answer(0, published("log-8-h100.txt")),
        "nvidia-smi": Answer(0, f"GPU 0: NVIDIA H20 (UUID: {UUID})\n"),
    }
    machine.files["/proc/cmdline"] = f"root=/dev/sda1 secret={NAMED}\n"
    machine.files["/var/lib/sglang/incidents/minimax-m2.5/1.json"] = json.dumps(
        {"output": [f"api_key='{KEY}'"]}
    )
    assert context.log is not None  # asked, so that it is kept
    texts = dict(bundle.collect(context))
    texts["report.json"] = json.dumps({"found": f"401 for {KEY}"})
    return texts


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        assert members
        return {
            member.name: file.read().decode()
            for member in members
            if (file := archive.extractfile(member)) is not None
        }


def test_the_canaries_are_there_before_they_are_masked() -> None:
    everything = "".join(planted().values())
    for canary in (
        KEY,
        ADMIN,
        TOKEN,
        NAMED,
        PASSWORD,
        "MIICANARY",
        SERIAL,
        UUID,
        ADDRESS,
        ADDRESS6,
        MAC,
        NAME,
    ):
        assert canary in everything, canary


@pytest.mark.parametrize("anonymise", [False, True])
def test_no_key_is_in_any_file(tmp_path: Path, keys: Path, anonymise: bool) -> None:
    secrets = secrets_of_host([keys], [], [f"MY_TOKEN={NAMED} PATH=/usr/bin"])
    file = tmp_path / "out" / "bundle.tar.gz"
    bundle.write(
        file, planted(), Redaction(secrets, anonymise=anonymise, names=[NAME, NAME.partition(".")[0]])
    )
    found = unpacked(file)
    assert len(found) > 15
    for name, text in found.items():
        for canary in ("CANARY", PASSWORD):
            assert canary not in text, name
            assert canary not in name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not [path for path in file.parent.iterdir() if path != file]
    assert json.loads(found["metal-accept/report.json"])["found"] == "401 for ***"
    assert json.loads(found["metal-accept/instance-minimax-m2.5/incidents/1.json"])
    site = [SERIAL, UUID.lower(), ADDRESS, ADDRESS6, MAC, NAME]
    everything = "".join(found.values()).lower()
    assert [canary for canary in site if canary in everything] == ([] if anonymise else site)


def test_what_tells_of_the_fault_stays() -> None:
    text = Redaction([], anonymise=True, names=["gpu07"]).text(
        "12:34:56 GPU 00000000:18:00.0 driver 580.126.20, NCCL 2.30.7, 127.0.0.1:8000, kernel 6.1.0-40, "
        "State : Completed, Serial Number : N/A, metal, gpu07"
    )
    for kept in (
        "12:34:56",
        "00000000:18:00.0",
        "580.126.20",
        "2.30.7",
        "127.0.0.1:8000",
        "6.1.0-40",
        ": N/A",
    ):
        assert kept in text
    assert "gpu07" not in text


def test_the_same_gpu_has_one_number_in_every_file() -> None:
    redaction = Redaction([], anonymise=True)
    first, second = redaction.text(f"a {UUID}"), redaction.text(f"b {UUID.upper().replace('GPU-B', 'GPU-b')}")
    assert first.removeprefix("a ") == second.removeprefix("b ") == "GPU-uuid-1"
    assert redaction.text("GPU-7c3cadbd-17e5-0913-f69b-c618122ea0cd") == "GPU-uuid-2"


def test_json_stays_json() -> None:
    value = {
        "checks": [{"found": f"Bearer {KEY}", "figures": {"xids": [f"x {KEY}"], "n": 1.5, "none": None}}]
    }
    masked = Redaction([KEY]).value(value)
    assert KEY not in json.dumps(masked)
    assert masked["checks"][0]["figures"]["n"] == 1.5


def test_a_key_in_the_engines_configuration_counts_without_its_name(keys: Path) -> None:
    # And nothing else of what lies beside it: a line of configuration would be masked everywhere.
    assert set(secrets_of_host([keys], [])) - {"{", "}"} == {KEY, ADMIN, TOKEN}


def test_an_archive_is_whole_or_not_there(tmp_path: Path) -> None:
    class Broken(Redaction):
        def text(self, text: str) -> str:
            raise OSError(28, "No space left on device")

    file = tmp_path / "bundle.tar.gz"
    with pytest.raises(OSError, match="No space"):
        bundle.write(file, {"a": "b"}, Broken([]))
    assert list(tmp_path.iterdir()) == []
