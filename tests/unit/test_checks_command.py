"""``metal check`` as called by users: usage, the key, the three outputs, exit statuses, never a traceback."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.cells import cell_len

from minimax_metal.common.errors import UserError
from minimax_metal.host.check import commands, suite
from minimax_metal.host.check.report import SCHEMA, Report, Result
from minimax_metal.host.check.table import PLAIN_WIDTH
from tests.support.engine import NAMES, Engine, serve

CANARY = "canary-4f1d9a7c"
QUICK = ["--figures", "1", "--figure-tokens", "4", "--concurrency", "2"]

ROWS = [check.name for check in suite.CHECKS if check.name != "reasoning_effort"]
"""The checks in a report on a model without levels of ``reasoning_effort``."""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(commands.KEY_VARIABLE, raising=False)


def closed_url() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


# Outputs --------------------------------------------------------------------------------------------------


def test_table_report_json_and_junit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, junit = tmp_path / "reports" / "check.json", tmp_path / "junit" / "check.xml"
    with serve(Engine("m3")) as url:
        arguments = [url + "/v1/", "--model", NAMES["m3"], "--image", *QUICK]
        assert commands.main([*arguments, "--report", str(file), "--junit", str(junit)]) == 0
        table = capsys.readouterr().out
        assert commands.main([*arguments, "--json", "--report", str(file)]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw == json.loads(file.read_text())
    assert raw["url"] == url
    assert raw["schema"] == SCHEMA == 2
    assert raw["passed"] is True
    assert raw["counts"] == {"passed": 39, "failed": 0, "limited": 1, "skipped": 2}
    assert raw["engine"] == {
        "version": "0.5.23",
        "reasoning_parser": "minimax-m3",
        "tool_call_parser": "minimax-m3",
        "limit_tokens": 4096,
    }
    assert [entry["name"] for entry in raw["checks"]] == ROWS
    assert [path.name for path in file.parent.iterdir()] == ["check.json"]
    assert "tool_call_stream" in table
    assert "\x1b" not in table
    framed = [line for line in table.splitlines() if line.startswith(("┌", "│", "├", "└"))]
    assert {cell_len(line) for line in framed} == {PLAIN_WIDTH}
    assert "avoid by: a router in front" in table

    (cases,) = ElementTree.parse(junit).getroot().iter("testsuite")  # noqa: S314  our own output
    assert (cases.get("tests"), cases.get("failures"), cases.get("skipped")) == ("42", "0", "3")
    messages = {case.get("name"): case.find("skipped") for case in cases.iter("testcase")}
    limited = messages["wrong_model"]
    assert limited is not None
    assert str(limited.get("message")).startswith("limited: ")
    assert list(messages) == ROWS


def test_a_failure_has_its_reason_in_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit = tmp_path / "check.xml"
    with serve(Engine("m3", tool_parser="minimax-m2", reasoning_parser="minimax-append-think")) as url:
        arguments = [url, "--model", NAMES["m3"], "--only", "tool_*", "--junit", str(junit)]
        assert commands.main(arguments) == 1
    said = capsys.readouterr().out
    assert "tool_call failed" in said
    assert "look:" in said
    assert "6 failed" in said
    failures = list(ElementTree.parse(junit).getroot().iter("failure"))  # noqa: S314  our own output
    assert len(failures) == 6
    assert "expected a call of get_weather" in str(failures[0].get("message"))
    assert "minimax-m3" in str(failures[0].text)


def test_what_xml_cannot_hold_is_replaced() -> None:
    result = Result("chat", "failed", 1.0, expected="a\x00b", got="\ud800 \x1b[0m <&>", look="好")
    root = ElementTree.fromstring(Report("http://h", "m", "now", (result,)).as_junit())  # noqa: S314  our own
    (failure,) = root.iter("failure")
    assert failure.get("message") == "expected a?b, got ? ?[0m <&>"


def test_table_on_a_terminal_is_coloured() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    Report("http://h", "m", "now", (Result("chat", "passed", 1.0, "好"),)).print(output)
    assert "\x1b[" in output.getvalue()


# The key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [frozenset[str](), frozenset({"echoes_key"})], ids=["sound", "echo"])
def test_the_key_is_in_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], faults: frozenset[str]
) -> None:
    key = tmp_path / "key"
    key.write_text(CANARY + "\n")
    report, junit = tmp_path / "r.json", tmp_path / "r.xml"
    with serve(Engine("m2", api_key=CANARY, faults=faults)) as url:
        arguments = [url, "--model", NAMES["m2"], "--api-key-file", str(key), *QUICK]
        outputs = ["--report", str(report), "--junit", str(junit)]
        assert commands.main([*arguments, *outputs]) == bool(faults)
        assert commands.main([*arguments, "--json"]) == bool(faults)
    said = capsys.readouterr()
    everything = said.out + said.err + report.read_text() + junit.read_text()
    assert CANARY not in everything
    assert ("Bearer [key]" in everything) == bool(faults), "the echo came, and was taken out"


def test_the_key_is_read_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f" {CANARY}\n")
    with serve(Engine("m2", api_key=CANARY)) as url:
        arguments = [url, "--model", NAMES["m2"], "--only", "models", "--only", "wrong_key"]
        assert commands.main([*arguments, "--api-key-file", str(file)]) == 0
        monkeypatch.setenv(commands.KEY_VARIABLE, CANARY)
        assert commands.main(arguments) == 0
        monkeypatch.setenv(commands.KEY_VARIABLE, "wrong")
        assert commands.main(arguments) == 1
        monkeypatch.setenv(commands.KEY_VARIABLE, "EMPTY")
        assert commands.main(arguments) == 1


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "schlüssel", "\udcff"])
def test_a_key_file_without_a_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="key") as raised:
        commands.main(["http://127.0.0.1:9", "--model", "m", "--api-key-file", str(file)])
    assert "words" not in str(raised.value)
    assert "schl" not in str(raised.value)


def test_a_url_with_a_password_is_not_repeated() -> None:
    with pytest.raises(UserError, match="--api-key-file") as raised:
        commands.main([f"http://user:{CANARY}@h:8000", "--model", "m"])
    assert CANARY not in str(raised.value)


# Not reachable, usage -------------------------------------------------------------------------------------


def test_when_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert commands.main([closed_url(), "--model", "m", "--report", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr()
    assert "nothing answers" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "r.json").exists()


def test_when_something_else_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert commands.main([url, "--model", "m", "--timeout", "0.3"]) == 2
        assert commands.main([url.replace("http", "https"), "--model", "m", "--timeout", "0.3"]) == 2
    said = capsys.readouterr().err
    assert said.count("nothing answers") == 2
    assert len(said.splitlines()) == 2


def test_an_endpoint_with_tls_and_certificates_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = self_signed(tmp_path / "certificate.pem")
    with serve(Engine("m2"), certificate) as url:
        arguments = [url, "--model", NAMES["m2"], "--only", "chat", "--only", "messages", "--timeout", "10"]
        assert commands.main([*arguments, "--ca-file", str(certificate)]) == 0
        assert commands.main(arguments) == 2
    assert "certificate" in capsys.readouterr().err
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    with pytest.raises(UserError, match="certificates"):
        commands.main([*arguments, "--ca-file", str(nonsense)])


def self_signed(file: Path) -> Path:
    """Write a certificate of 127.0.0.1 with its key to a file in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "endpoint")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM))
    return file


NONSENSE = {
    "nothing": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"text"',
    "nulls": b'{"data": null, "choices": null, "content": null, "loads": null, "usage": null}',
    "numbers": b'{"data": [1], "choices": [2], "content": [3], "loads": [4], "usage": 5, "error": 6}',
    "empty": b'{"data": [{}], "choices": [{}], "content": [{}], "loads": [{}], "usage": {}}',
    "half": b'{"choices": [{"message": {"content": ["x"], "tool_calls": [{}]}, "delta": {}}], "usage": {}}',
    "stream": b'data: {"choices": [{"delta": {"tool_calls": [{}]}}]}\n\ndata: [DONE]\n\n',
    "page": b"<html>It works!</html>",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_fails_and_never_ends_in_a_traceback(
    body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            arguments = [url, "--model", "m", "--image", "--limit-tokens", "512", "--abort-seconds", "0.2"]
            assert commands.main([*arguments, *QUICK]) == 1
        finally:
            server.shutdown()
            thread.join()
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    passed = re.findall(r"^│ (\w+) +│ passed", said.out, re.MULTILINE)
    assert not passed, "nothing passes on nonsense"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gpu01:8000", "--model", "m"], "is not the URL"),
        (["http://", "--model", "m"], "is not the URL"),
        (["http://h:99999", "--model", "m"], "is not the URL"),
        (["http://[::1", "--model", "m"], "is not the URL"),
        (["http://h?key=x", "--model", "m"], "more than host"),
        (["http://h", "--model", "m", "--api-key-file", "/none"], "key file"),
        (["http://h", "--model", "m", "--only", "nothing"], "no check is named 'nothing'"),
        (["http://h", "--model", "m", "--bench"], "--bench-python"),
        (["https://h", "--model", "m", "--ca-file", "/none"], "certificates"),
    ],
)
def test_usage_is_one_line(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        commands.main(argv)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "more",
    ["--timeout=0", "--figures=0", "--figures=x", "--long-prompt-share=2", "--concurrency=-1"],
)
def test_values_out_of_range(more: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["http://h", "--model", "m", more])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    junit = str(tmp_path / "file" / "below.xml")
    with serve(Engine("m2")) as url:
        arguments = [url, "--model", NAMES["m2"], "--only", "models", "--junit", junit]
        with pytest.raises(UserError, match="can't write the report"):
            commands.main(arguments)


def test_checks_are_chosen_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [check.name for check in suite.CHECKS]
    assert all(len(line.split()) > 3 for line in listed)
    with serve(Engine("m2", faults=frozenset({"messages_missing"}))) as url:
        arguments = [url, "--model", NAMES["m2"], "--skip", "messages*", "--json", *QUICK]
        assert commands.main(arguments) == 0
    raw = json.loads(capsys.readouterr().out)
    left = {entry["name"] for entry in raw["checks"] if "--skip" in entry["detail"]}
    assert left == {check.name for check in suite.CHECKS if check.name.startswith("messages")}


def test_other_verbs_do_not_import_the_clients() -> None:
    program = (
        "import sys, contextlib\nfrom minimax_metal import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['plan', '--help'])\n"
        "with contextlib.suppress(SystemExit): cli.main(['check', '--help'])\n"
        "print([name for name in ('openai', 'anthropic', 'pydantic_core', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "openai" not in done.stdout.splitlines()[-1]
    assert "anthropic" not in done.stdout.splitlines()[-1]


# The document ---------------------------------------------------------------------------------------------


def test_the_document_has_every_check_option_and_field(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    for check in suite.CHECKS:
        assert f"`{check.name}`" in text, check.name
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--model", "--bench-"}
    assert not {option for option in options if option not in text}
    report = Report("http://h", "m", "now", (Result("chat", "passed", 1.0),)).as_dict()
    for field in (*report, *report["engine"], *report["counts"], *report["checks"][0]):
        assert f"`{field}`" in text or f"`checks[].{field}`" in text, field
