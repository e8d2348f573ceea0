"""Readers of output of a host, its kernel and its engine: the supervisor's, and those of ``metal explain``."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any, Final

from minimax_metal.common import certificates, nvidia_smi, text
from minimax_metal.host.engine import explain, health, kernel_archive, kernel_lines, kernels, listener, starts
from minimax_metal.host.engine.diagnosis import diagnose, find_events, find_xids, read_lines
from minimax_metal.host.engine.output import Output, Secrets
from minimax_metal.host.releases import record
from minimax_metal.plan.model import Plan
from tests.fuzz.target import Form, Target, of_file, of_lines, of_text

ENGINE: Final = (
    b"[2026-11-22 01:01:07 TP0] Load weight begin. avail mem=13.73 GB\n"
    b"[2026-11-22 01:01:09 TP0] Scheduler hit an exception: Traceback (most recent call last):\n"
    b'  File "/opt/sglang/lib/python3.11/site-packages/sglang/srt/managers/scheduler.py", line 2, in run\n'
    b"    raise ValueError(x)\n"
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    b"79.11 GiB of which 1.03 GiB is free. Process 4711 has 77.00 GiB memory in use. Of the allocated\n"
    b"RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.\n",
    b"[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use\n"
    b"INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)\n"
    b"server_args=ServerArgs(model_path='/srv/models/a', port=8000, host='0.0.0.0')\n"
    b"The server is fired up and ready to roll!\n"
    b"OSError: libnuma.so.1: cannot open shared object file: No such file or directory\n"
    b"safetensors_rust.SafetensorError: Error while deserializing header: /srv/m/model-00001.safetensors\n",
)
KERNEL: Final = (
    b"NVRM: Xid (PCI:0000:18:00): 31, pid=2331, name=python, Ch 00000008, MMU Fault\n"
    b"NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
    b"NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (Reset)\n"
    b"NVRM: The NVIDIA GPU 0000:18:00.0 (PCI ID: 10de:2330) installed in this system requires more\n"
    b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0-1,"
    b"oom_memcg=/sglang.slice,task_memcg=/sglang.slice/sglang@a.service,task=python,pid=1234,uid=998\n"
    b"Memory cgroup out of memory: Killed process 1234 (python) total-vm:1kB, anon-rss:1kB\n"
    b"nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up\n"
    b"nvme0n1: I/O error, dev nvme0n1, sector 12 op 0x0:(READ) flags 0x80700\n"
    b"pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0\n",
)
JOURNALS: Final = (
    b'{"__REALTIME_TIMESTAMP":"1764000000000000","MESSAGE":"Starting sglang@a.service - a","PRIORITY":"6",'
    b'"SYSLOG_IDENTIFIER":"systemd","_TRANSPORT":"journal"}\n'
    b'{"__REALTIME_TIMESTAMP":"1764000001000000","MESSAGE":[82,117,110,116,105,109,101],"_COMM":"python",'
    b'"SYSLOG_IDENTIFIER":"python"}\n'
    b'{"__REALTIME_TIMESTAMP":"1764000002000000","MESSAGE":"NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen",'
    b'"_TRANSPORT":"kernel"}\n',
    b"Nov 22 01:01:07 gpu01 python[4711]: [2026-11-22 01:01:07 TP0] RuntimeError: CUDA error: unspecified\n"
    b"2026-11-22T01:01:07.123456+0000 gpu01 kernel: NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has\n"
    b"[   12.345678] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=python, GPU has fallen off the bus.\n"
    b"2026-11-22T01:01:07.1234567Z stderr F torch.OutOfMemoryError: CUDA out of memory.\n"
    b'{"log":"RuntimeError: No CUDA GPUs are available\\n","stream":"stderr","time":"2026-11-22T01:01:07Z"}\n'
    b"engine-1  | ValueError: x\n",
)
SMI: Final = (
    b"0, NVIDIA H20, GPU-1, 97871 MiB, 580.65.06, 9.0\n1, NVIDIA H20, GPU-2, 97871 MiB, 580.65.06, 9.0\n",
    b"Unable to determine the device handle for GPU5: 0000:BA:00.0: Unknown Error\n",
    b"Unable to determine the device handle for GPU 0000:BA:00.0: GPU is lost.  Reboot the system\n"
    b'0, [Unknown Error], [N/A], [N/A], 610.57.04 [Deprecated; see "KMD version", instead], 9.0\n',
    b"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
)
METRICS: Final = (
    b'# HELP sglang:num_running_reqs x\nsglang:num_running_reqs{model_name="a",tp_rank="0"} 3.0\n'
    b'sglang:num_queue_reqs{model_name="a"} 1.0\nsglang:generation_tokens_total{model_name="a"} 1e+06\n'
    b'sglang:http_responses_total{endpoint="/v1/chat/completions",method="POST",status_code="200"} 12.0\n'
    b'sglang:http_responses_total{endpoint="/v1/chat/completions",method="POST",status_code="500"} 2.0\n'
    b"sglang:time_to_first_token_seconds_sum{} 1.5\nsglang:time_to_first_token_seconds_count 3\n",
)


def _diagnosed(lines: list[str]) -> object:
    reason = diagnose(lines, find_xids(lines), ready=False, events=find_events(lines), port=8000)
    return explain.document(reason), explain.shown(reason)


def _explained(log: str) -> object:
    reason = explain.explain(log)
    return explain.document(reason), explain.shown(reason)


def _smi(answer: str) -> object:
    for line in answer.splitlines():
        nvidia_smi.handle(line)
    for cells in nvidia_smi.rows(answer):
        for cell in cells:
            (
                nvidia_smi.mib(cell),
                nvidia_smi.sickness(cell),
                nvidia_smi.no_value(cell),
                nvidia_smi.daemon(cell),
            )
        nvidia_smi.row_sickness(cells)
    nvidia_smi.refusal(answer)
    return None


def _output(content: bytes) -> object:
    said: list[str] = []
    source = io.BufferedReader(io.BytesIO(content))
    output = Output(source, Secrets(["sk-secret-of-the-clients"]), said.append)
    output.run()
    return output.phase, said


def _archive(content: bytes) -> object:
    return [
        (member.name, len(data))
        for member, data in kernel_archive.members(io.BytesIO(content), "r:*", "archive")
    ]


def _unpacked(content: bytes) -> object:
    with tempfile.TemporaryDirectory() as place:
        return kernel_archive.add(io.BytesIO(content), "r|", "archive", Path(place) / "cache")


def _tar() -> bytes:
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("triton/ab/kernel.cubin", "tvm-ffi/x/lib.so", "torchinductor/a/b.py"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 4, 1_764_000_000
            tar.addfile(member, io.BytesIO(b"\x7fELF"))
    return made.getvalue()


def _listening(table: Path) -> object:
    return listener.listening(8000, table.parent.parent)


def _family(status: Path) -> object:
    return listener.family(1, status.parent.parent)


def _kernel_lines(line: str) -> object:
    found = [one for one in map(kernel_lines.of_journal, line.splitlines()) if one]
    return [told for _, told in found], kernel_lines.parse(line, 0.0)


def _record(path: Path) -> object:
    release = record.Release(1, "a" * 12, path)
    return record.recorded_weights(release), kernels.origin(path.stem, path.parent)


def _plan(path: Path) -> Any:
    plan = record.read_plan(str(path))
    read = Plan.of_record(plan)
    return record.decided(plan), record.weights_of(read), record.kernels_of(read, path.parent)


PLAN: Final = (
    b'{"schema":1,"host":"gpu01","model":{"name":"MiniMax-M2.5","path":"/srv/models/a/b/c","revision":"r",'
    b'"served_name":"MiniMax-M2.5"},"engine":{"release":"0.5.23","environment":"/opt/sglang/a","digest":"d"},'
    b'"services":[{"unit":"sglang@a.service","argv":["--port","8000"],"url":"http://10.0.0.1:8000",'
    b'"start_timeout_seconds":600,"stop_timeout_seconds":60,"worker_url":"http://10.0.0.1:8000"}],'
    b'"kernel_cache":{"directory":"/var/cache/sglang/k","name":"k"},"weights":{"proof":null}}',
)

CERTIFICATE: Final = (
    b"MIIBGDCBv6ADAgECAgEHMAoGCCqGSM49BAMCMBYxFDASBgNVBAMMC2xsbS5leGFtcGxlMB4XDTI2MTEyOTEyMDAwMF"
    b"oXDTI3MTEyOTEyMDAwMFowFjEUMBIGA1UEAwwLbGxtLmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARZ"
    b"F0RiXmpAf1dDNyI+ygeWDuHzfhFW/goA/s3ekZvjIkc77BuVSzqx18rEVGUMx3wkY86k7LesFT/IHUi8odBcMAoGCC"
    b"qGSM49BAMCA0gAMEUCIAEwQ9OUKs8OwLvnzSocpM1HDPSuPA1S1vl7VXhpfMJ+AiEA7dbpY/LqtuwZXBd3w+eqkLwn"
    b"71MAwd3FEPp1InpjAJQ="
)
"""For tests only: its private key was thrown away."""


def _certificate(content: bytes) -> object:
    pem = b"-----BEGIN CERTIFICATE-----" + base64.b64encode(content) + b"-----END CERTIFICATE-----"
    return certificates.end_of(pem)


TARGETS: Final = (
    Target("printable", of_text(lambda one: (text.printable(one), text.one_line(one))), ENGINE, shown=True),
    Target("diagnosis", of_lines(_diagnosed), (*ENGINE, *KERNEL), shown=True),
    Target("explain", of_text(_explained), (*JOURNALS, *ENGINE, *KERNEL), shown=True),
    Target("explain-json-line", of_text(_explained), tuple(JOURNALS[0].splitlines()), Form.JSON, shown=True),
    Target("explain-file", of_file(lambda path: explain.read_file(str(path))), JOURNALS),
    Target("kernel-xids", of_lines(lambda lines: [str(one) for one in find_xids(lines)]), KERNEL),
    Target("kernel-lines", of_text(_kernel_lines), (*JOURNALS[:1], b"1764000000.0 NVRM: Xid\n"), shown=False),
    Target("log-lines", of_lines(lambda lines: [one.text for one in read_lines(lines)]), (*JOURNALS, *ENGINE)),
    Target("engine-output", _output, ENGINE),
    Target("metrics", of_text(health.parse_figures), METRICS),
    Target("nvidia-smi", of_text(_smi), SMI),
    Target("systemd-show", of_text(starts.parse_starts), (
        b"Id=sglang@a.service\nActiveState=activating\nSubState=start\nStatusText=starting: weights, 12 %; 1 s\n"
        b"NRestarts=2\nResult=success\n\nId=sglang@b.service\nActiveState=failed\nSubState=failed\nNRestarts=x\n",
    )),
    Target("kernel-archive", _archive, (_tar(),), Form.BYTES),
    Target("kernel-archive-unpacked", _unpacked, (_tar(),), Form.BYTES),
    Target("proc-net-tcp", of_file(_listening, "net/tcp"), (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        b"   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 5131 1 0\n",
    )),
    Target("proc-stat", of_file(_family, "1/stat"), (b"1 (a (b) c) S 0 1 1 0 -1 4194560\n",)),
    Target("release-record", of_file(_record, "0001-aaaaaaaaaaaa.json"), (
        b'{"schema":1,"number":1,"digest":"d","weights":{"a":"b"},"plan":{}}',
    ), Form.JSON),
    Target("certificate", _certificate, (base64.b64decode(CERTIFICATE),), Form.BYTES),
    Target("certificate-file", of_file(certificates.end_of_file), (
        b"-----BEGIN CERTIFICATE-----\n" + CERTIFICATE + b"\n-----END CERTIFICATE-----\n",
    ), expects=(OSError,)),
    Target("plan-file", of_file(_plan), PLAN, Form.JSON),
)  # fmt: skip
