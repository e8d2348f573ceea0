"""What site.yml leaves on a host, seen from outside and from the host."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from typing import Any

from testinfra.host import Host

GUIDE = {
    4: "--tp-size 4 --tool-call-parser minimax-m2 --reasoning-parser minimax-append-think --host 0.0.0.0"
    " --trust-remote-code --port 8000 --mem-fraction-static 0.85",
    8: "--tp-size 8 --ep-size 8 --tool-call-parser minimax-m3 --trust-remote-code --host 0.0.0.0"
    " --reasoning-parser minimax-m3 --port 8000 --mem-fraction-static 0.75",
}
"""The guides' commands by card count, behind the model's path; M3 with the engine's own parsers and the share
of memory that it was reported to run with."""


def exec_start(host: Host, unit: str) -> str:
    """Return the command of a unit as `systemctl cat` shows it, in one line."""
    text = host.check_output("systemctl cat %s", unit).replace("\\\n", " ")
    return " ".join(next(line for line in text.splitlines() if line.startswith("ExecStart=")).split())


def post(url: str, key: str, payload: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - a lab host's address, http only
        url,
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:  # noqa: S310 - as above
        answer: dict[str, Any] = json.load(reply)
    return answer


def test_the_driver_is_loaded_at_the_branch_of_the_plan(gpu_host: Host, plan: dict[str, Any]) -> None:
    version = gpu_host.check_output(
        "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    ).splitlines()
    assert len(version) == plan["gpus"]["count"]
    assert {line.split(".")[0] for line in version} == {plan["driver"]["branch"]}
    assert f" {version[0]} " in gpu_host.file("/proc/driver/nvidia/version").content_string


def test_the_driver_is_held_and_its_services_start_at_boot(gpu_host: Host, plan: dict[str, Any]) -> None:
    assert set(plan["driver"]["held"]) <= set(gpu_host.check_output("apt-mark showhold").split())
    for name in plan["driver"]["services"]:
        assert gpu_host.service(name).is_enabled
        assert gpu_host.service(name).is_running


def test_fabric_manager_is_there_only_with_nvswitches(gpu_host: Host, plan: dict[str, Any]) -> None:
    installed = gpu_host.run("dpkg-query -W -f '${db:Status-Status}' 'nvidia-fabricmanager*'").stdout
    assert ("installed" in installed) == plan["driver"]["fabric_manager"]


def test_the_weights_are_there_whole_and_the_engine_can_only_read_them(
    gpu_host: Host, plan: dict[str, Any]
) -> None:
    path = plan["model"]["path"]
    index = json.loads(gpu_host.file(f"{path}/model.safetensors.index.json").content_string)
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    for shard in shards:
        assert gpu_host.file(f"{path}/{shard}").user == "sglang-weights"
        assert gpu_host.run("runuser -u sglang -- test -r %s", f"{path}/{shard}").rc == 0
        assert gpu_host.run("runuser -u sglang -- test -w %s", f"{path}/{shard}").rc == 1
    assert gpu_host.run("runuser -u sglang -- test -w %s", path).rc == 1
    request = f"/etc/minimax-metal/weights/{plan['service']['instance']}.json"
    assert gpu_host.run("metal weights check --request %s", request).rc == 0


def test_the_unit_holds_the_whole_command_of_the_guide(gpu_host: Host, plan: dict[str, Any]) -> None:
    command = exec_start(gpu_host, plan["service"]["unit"])
    engine = command.split(" -- ", 1)[1]
    expected = (
        f"{plan['engine']['environment']}/bin/sglang serve"
        f" --model-path {plan['model']['path']}"
        f" --served-model-name {plan['model']['served_name']} {GUIDE[plan['gpus']['count']]}"
    )
    assert engine.startswith(expected)


def test_the_unit_runs_as_its_user_and_starts_at_boot(
    gpu_host: Host, plan: dict[str, Any], unit: Any
) -> None:
    assert unit.is_running
    assert unit.is_enabled
    place = f"{plan['engine']['environment']}/bin/"
    processes = [line.split(maxsplit=1) for line in gpu_host.check_output("ps -eo user=,args=").splitlines()]
    assert {user for user, command in processes if command.startswith(place)} == {"sglang"}


def test_as_many_ranks_run_as_there_are_gpus(gpu_host: Host, plan: dict[str, Any], unit: Any) -> None:
    ranks = set(re.findall(r"sglang::scheduler[\w]*?TP(\d+)", gpu_host.check_output("ps -eo args=")))
    assert ranks == {str(rank) for rank in range(plan["parallelism"]["tp"])}


def test_the_guides_request_is_answered_from_another_machine(
    gpu_host: Host, plan: dict[str, Any], unit: Any, api_key: str
) -> None:
    address = gpu_host.check_output("hostname -I").split()[0]
    answer = post(
        f"http://{address}:8000/v1/chat/completions",
        api_key,
        {
            "model": plan["model"]["served_name"],
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
                {"role": "user", "content": [{"type": "text", "text": "Who won the world series in 2020?"}]},
            ],
        },
    )
    assert "Dodgers" in answer["choices"][0]["message"]["content"]


def test_the_report_says_that_every_check_passed(gpu_host: Host, plan: dict[str, Any]) -> None:
    report = json.loads(
        gpu_host.file(f"/var/lib/minimax-metal/checks/{plan['service']['instance']}.json").content_string
    )
    outcomes = {check["name"]: check["status"] for check in report["checks"]}
    assert "failed" not in outcomes.values()
    assert sum(outcome == "passed" for outcome in outcomes.values()) >= 20
    # A text model passes by refusing a picture.
    (image,) = (check["detail"] for check in report["checks"] if check["name"] == "image")
    assert image.startswith("named" if "image" in plan["model"]["modalities"] else "refused")


def test_nothing_of_the_service_can_be_written_by_others(gpu_host: Host, plan: dict[str, Any]) -> None:
    found = gpu_host.check_output(
        "find /etc/minimax-metal /etc/sglang /etc/systemd/system /opt/minimax-metal /opt/sglang"
        " /var/lib/minimax-metal %s"
        " -not -type l -perm /o+w",
        plan["model"]["path"],
    )
    assert found == ""
    assert shlex.split(gpu_host.check_output("getent passwd sglang").split(":")[-1]) == ["/usr/sbin/nologin"]
