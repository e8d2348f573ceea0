"""The real gateway (smg) with certificates of the fleet's own authority on both sides."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from minimax_metal.controller.keys.authority import issued
from minimax_metal.plan.gateway import CREDENTIALS, Options, launch_arguments
from tests.support.gateway import CLIENT_KEY, MODEL, RealGateway, smg_python
from tests.support.simulated import free_port, simulated_engine

pytestmark = pytest.mark.slow


def running(gateway: RealGateway) -> subprocess.Popen[bytes]:
    with (gateway.directory / "smg.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "minimax_metal.cli", "gateway", "launch",
             "--keys", str(gateway.directory / "keys"), "--", *gateway.argv],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.mark.parametrize("trusted", [True, False])
def test_a_request_goes_by_tls_to_workers_whose_certificate_the_ca_gave(
    tmp_path: Path, trusted: bool
) -> None:
    names = ["localhost", "127.0.0.1"]
    files = tmp_path / "files"
    files.mkdir()
    for name, text in vars(issued(tmp_path / "tls", "gw01", names)).items():
        (files / {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}.get(name, name)).write_text(
            text
        )
    authority = tmp_path / ("tls" if trusted else "other")
    issued(authority, "gpu01", names)
    keyed = tmp_path / "engine.yaml"
    keyed.write_text(f'api-key: "{CLIENT_KEY}"\nadmin-api-key: "other-{CLIENT_KEY}"\n')
    port, metrics = free_port(), free_port()
    options = Options(
        port=port, metrics_port=metrics, listen_address="127.0.0.1", retries=0, health_interval_seconds=1,
        tls_certificate="x", tls_key="x", worker_ca_certificate=f"{CREDENTIALS}/ca.crt",
    )  # fmt: skip
    argv = [word.replace(CREDENTIALS, str(files)) for word in launch_arguments(str(smg_python()), options)]
    argv[argv.index("--discovery-file") + 1] = str(tmp_path / "workers.json")
    trust = ssl.create_default_context(cafile=str(tmp_path / "tls/ca.crt"))
    with simulated_engine(
        tmp_path,
        *("--config", str(keyed)),
        *(
            "--ssl-certfile",
            str(authority / "host-gpu01.crt"),
            "--ssl-keyfile",
            str(authority / "host-gpu01.key"),
        ),
    ) as engine:
        gateway = RealGateway(tmp_path, f"https://127.0.0.1:{port}", "", argv)
        gateway.configure(engine.url)
        found = json.loads(gateway.configuration.read_text())
        found |= {"ca_file": str(tmp_path / "tls/ca.crt"), "engine_ca_file": str(tmp_path / "tls/ca.crt")}
        gateway.configuration.write_text(json.dumps(found))
        assert gateway.metal("sync", "--no-wait").returncode == 0
        process = running(gateway)
        try:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            request = urllib.request.Request(  # noqa: S310  # loopback
                f"{gateway.url}/v1/chat/completions", json.dumps(body).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"},
            )  # fmt: skip
            deadline, seen = time.monotonic() + (40 if trusted else 8), []
            while time.monotonic() < deadline and 200 not in seen:
                assert process.poll() is None, gateway.log
                try:
                    with urllib.request.urlopen(request, timeout=20, context=trust) as answer:  # noqa: S310
                        seen.append(answer.status)
                except OSError as error:
                    seen.append(getattr(error, "code", str(error)))
                    time.sleep(0.5)
            assert (200 in seen) == trusted, (seen[-3:], gateway.log[-2000:])
            assert any(isinstance(one, int) for one in seen), seen  # the gateway's own side answered by TLS
        finally:
            process.terminate()
            process.wait(60)
