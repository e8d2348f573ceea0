"""Readers of data for the plan from Ansible, apt, dpkg, DKMS, a host's facts, settings and overlays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from minimax_metal.catalog.load import load_catalog, read_overlay
from minimax_metal.common.redact import secrets_of_extra_variables
from minimax_metal.controller.adapter import plan_host, raw_facts_of, refusal_lines
from minimax_metal.controller.ansible_programs import read_answer
from minimax_metal.controller.inventory import _cached, _members
from minimax_metal.controller.tags import tags_of
from minimax_metal.controller.vault import decrypted_of, is_encrypted, masked
from minimax_metal.plan import Settings, parse_facts
from minimax_metal.plan.connection import trouble_in, trouble_of
from minimax_metal.plan.driver.apt_words import end_of, lines_of, package_of, same_place
from minimax_metal.plan.driver.failure import failure_line
from minimax_metal.plan.driver.kernel import build_failure
from minimax_metal.plan.driver.sources import primary_fingerprints
from minimax_metal.plan.driver.state import driver_state
from minimax_metal.plan.gpu_facts import read_smi
from minimax_metal.plan.settings.values import SettingsError
from tests.fuzz.target import SKIPPED, Form, Target, of_ansible, of_file, of_json, of_lines, of_text, text_of
from tests.fuzz.targets.host import SMI
from tests.unit.plan_helpers import decide, raw_host

MESSAGES: Final = tuple(
    str(one).encode()
    for one in (
        "fatal: [gpu01]: UNREACHABLE! => Failed to connect to the host via ssh: Permission denied (publickey,password).",
        "ssh: connect to host 10.0.0.1 port 22: Connection refused\r\nssh: Could not resolve hostname a: x",
        "@@@@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending ED25519 key in /root/.ssh/known_hosts:3",
        "sudo: a password is required\nModuleNotFoundError: No module named 'x'\n/bin/sh: 1: /usr/bin/python3: not found",
        "Attempting to decrypt but no vault secrets found\nERROR! Decryption failed (no vault secrets were found)",
    )
)
APT: Final = (
    "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1234 (unattended-upgr)\n"
    "E: Failed to fetch https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/InRelease  "
    "403  Forbidden [IP: 10.0.0.1 443]\nErr:1 http://mirror.example.org/debian bookworm InRelease\n"
    "dpkg: error processing archive /tmp/apt-dpkg-install-7YcN9P/57-nvidia-utils_580_amd64.deb (--unpack):\n"
    " trying to overwrite '/usr/bin/nvidia-smi', which is also in package nvidia-utils-450 450.80\n"
    "W: GPG error: https://a InRelease: The following signatures couldn't be verified NO_PUBKEY A4B469963BF863CC\n"
    "The following packages have unmet dependencies:\n nvidia-driver : Depends: libnvidia (= 580) but it is not\n"
    "Error! Bad return status for module build on kernel: 6.1.0-40-amd64 (x86_64)\nNo space left on device\n"
    "E: The repository 'https://a Release' is not valid yet (invalid for another 3h 2min 1s).\n"
)
FAILED: Final = (
    json.dumps({"failed": True, "msg": "Failed to update apt cache: E:x", "stderr": APT, "stdout": "", "url": "https://a",
                "results": [{"failed": True, "msg": APT[:200], "item": 1}]}).encode(),
)  # fmt: skip
COLLECTED: Final = {
    "packages": {"nvidia-driver": {"state": "ii", "version": "580.65.06-1", "source": "x"}},
    "available": {"nvidia-driver": ["580.65.06-1"]},
    "kernels": {"running": "6.1.0-40-amd64", "modules": ["6.1.0-40-amd64"], "bootable": ["6.1.0-41-amd64"], "headers": []},
    "dkms_logs": {"/var/lib/dkms/nvidia/580/build/make.log": ["a.c:1: fatal error: x.h: No such file", "make: *** [x] Error 2"]},
    "module_users": {"holders": {"nvidia": ["nvidia_uvm"]}, "processes": [{"pid": 1, "name": "a"}]},
    "keys": {"/var/lib/dkms/mok.pub": True}, "dkms": [0, "nvidia/580.65.06, 6.1.0-40-amd64, x86_64: installed"],
    "fabric": [0, "x"], "container": False,
}  # fmt: skip
HOST: Final = (
    json.dumps(raw_host("H20", 2)).encode(),
    json.dumps(raw_host("H20", 2, driver="580.65.06")).encode(),
    json.dumps(
        {"answer": {"unreachable": True, "msg": text_of(MESSAGES[0])}, "host": "a", "user": "b"}
    ).encode(),
)
VARIABLES: Final = (
    b'{"metal_model":"MiniMax-M2.5","metal_weights_source":["hf-mirror","/mnt/a"],"metal_tp_size":4,'
    b'"metal_engine_extra_args":["--a","b"],"metal_engine_extra_environment":{"A":"b"},"metal_port":8000,'
    b'"metal_allowed_media_domains":["a.example"],"metal_accept_refusals":["disk"],"metal_mem_fraction_static":0.9,'
    b'"metal_cache_url":"http://cache:8080","metal_engine_extra_packages":[{"path":"/a.whl"}]}',
)


PLANNED: Final = decide("H20", 4, model="MiniMax-M2.5")


def _facts(raw: Any) -> object:
    return parse_facts(raw)


def _planned(raw: Any) -> object:
    made = plan_host("gpu01", {"metal_model": "MiniMax-M2.5"}, raw).as_dict()
    return refusal_lines(made)


def _trouble(text: str) -> object:
    return trouble_in(text, host="gpu01").line(), trouble_in(text, unreachable=True).line()


def _settings(values: Any) -> object:
    Settings.read("gpu01", values)
    made = plan_host("gpu01", values, raw_host("H20", 2)).as_dict()
    return refusal_lines(made)


def _driver(collected: Any) -> object:
    raw = raw_host("H20", 2)
    state = driver_state(raw, PLANNED, collected)
    return state, failure_line(json.loads(FAILED[0]), "https://developer.download.nvidia.com", collected)


def _apt(failed: Mapping[str, Any]) -> object:
    lines = lines_of(failed)
    end_of(lines)
    for line in lines[:200]:
        package_of(line), same_place(line, "https://developer.download.nvidia.com/a")
    return failure_line(failed, "https://developer.download.nvidia.com/compute", COLLECTED, "nvidia")


def _overlay(path: Path) -> object:
    load_catalog([read_overlay(path)])
    return None


def _vault(value: Any) -> object:
    return is_encrypted(value), decrypted_of(value, value), masked(value, ["secret-text"])


def _raw(value: Any) -> object:
    return parse_facts(raw_facts_of(value, value))


def _tags(path: Path) -> object:
    return sorted(tags_of(path, path.parent / "roles"))


def _extra(content: bytes) -> object:
    return secrets_of_extra_variables(["-e", text_of(content[:100_000])])  # Linux takes 128 KiB a word


def _yaml(content: bytes) -> object:
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return SKIPPED


TARGETS: Final = (
    Target("ansible-message", of_text(_trouble), (*MESSAGES, APT.encode()), shown=True),
    Target("ansible-answer", of_json(lambda one: trouble_of(one, "gpu01").line(), dict), FAILED, Form.JSON, shown=True),
    Target("ansible-answer-file", of_file(read_answer), FAILED, Form.JSON),
    Target("ansible-facts-cache", of_file(_cached), FAILED, Form.JSON),
    Target("host-facts", of_json(_facts), HOST, Form.JSON),
    Target("host-facts-planned", of_json(_planned), HOST, Form.JSON, shown=True),
    Target("host-probe", of_json(_raw, dict), (
        b'{"stdout":"python3=/usr/bin/python3 sudo=/usr/bin/sudo uid=0(root)","facts":{"reachable":true}}',
    ), Form.JSON),
    Target("smi-facts", of_json(read_smi), tuple(
        json.dumps({"present": True, "returncode": 0, "stdout": text_of(one), "stderr": "", "mig": "0, Enabled\n",
                    "recovery": "0, None\n", "bus_ids": "0, 0000:ba:00.0\n"}).encode() for one in SMI
    ), Form.JSON, shown=True),
    Target("smi-cells", of_text(lambda text: read_smi({"present": True, "returncode": 0, "stdout": text, "stderr": text})),
           SMI, shown=True),
    Target("driver-facts", of_json(_driver, dict), (json.dumps(COLLECTED).encode(),), Form.JSON),
    Target("apt-messages", of_json(_apt, dict), FAILED, Form.JSON, shown=True),
    Target("apt-text", of_text(lambda text: _apt({"msg": text})), (APT.encode(),), shown=True),
    Target("dkms-log", of_lines(lambda lines: build_failure(lines, "6.1.0-40-amd64")), (
        b"make -C /lib/modules\na.c:1:2: fatal error: x.h: No such file\nmake: *** [a.o] Error 1\nKey was rejected\n",
    )),
    Target("gpg-listing", of_text(primary_fingerprints), (
        b"pub:-:4096:1:A4B469963BF863CC:1:::-:::scESC::::::23::0:\nfpr:::::::::EB693B3035CD5710E231E123A4B469963BF863CC:\n",
    )),
    Target("settings", of_ansible(_settings, dict), VARIABLES, Form.JSON, (SettingsError,), shown=True),
    Target("inventory-listing", of_json(lambda one: _members(one, "gpu_hosts", set()), dict), (
        b'{"gpu_hosts":{"hosts":["a","b"],"children":["c"]},"c":{"hosts":["d"]},"_meta":{"hostvars":{"a":{}}}}',
    ), Form.JSON),
    Target("vault-values", of_json(_vault), (
        b'{"a":{"__ansible_vault":"$ANSIBLE_VAULT;1.1;AES256 6162"},"b":["secret-text",1,null]}',
    ), Form.JSON),
    Target("catalogue-overlay", of_file(_overlay), (
        b"models:\n  X:\n    family: minimax-m2\n    formats:\n      fp8:\n        repository: a/b\n        bytes: {value: 1, source: x}\n",
        b"gpus:\n  H20:\n    memory_bytes: {value: 1, source: x}\n", b"a: &a [*a]\n", b"? {a: b}\n: c\n",
    )),
    Target("playbook-tags", of_file(_tags, "site.yml"), (
        b"- hosts: all\n  tags: [a, b]\n  roles: [x, {role: y, tags: z}]\n  tasks:\n    - ansible.builtin.import_tasks: a.yml\n      tags: q\n",
    )),
    Target("extra-variables", _extra, (b'{"api_key": "sk-abc"}', b"a=b password='x y'", b"@/nonexistent", b"[a, b]")),
)  # fmt: skip
