"""The meaning of nvidia-smi's cells and refusals, with output from real machines."""

from __future__ import annotations

import pytest

from minimax_metal.common import nvidia_smi

HANDLE = "Unable to determine the device handle for"


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        # gpud PR#1133 and the words of nvmlErrorString.
        ("[Unknown Error]", "does not answer"),
        ("[GPU requires reset]", "waits for a reset"),
        ("[GPU is lost]", "has lost it"),
        ("[Gpu is lost]", "has lost it"),
        ("GPU is lost", "has lost it"),
        # nvidia_gpu_exporter#393
        ("ERR!", "does not answer"),
        ("[Timeout]", "does not answer"),
        ("[Corrupted infoROM]", "infoROM"),
        ("[Insufficient External Power]", "power cable"),
        ("[An error that nobody has seen yet]", "does not answer"),
    ],
)
def test_an_error_of_nvml_in_a_cell_is_a_sick_gpu(cell: str, told: str) -> None:
    meaning = nvidia_smi.sickness(cell)
    assert meaning is not None
    assert told in meaning
    assert not nvidia_smi.no_value(cell)
    assert nvidia_smi.row_sickness(["3", "NVIDIA H200", cell]) == f"{cell}: {meaning}"


@pytest.mark.parametrize(
    "cell",
    [
        "[N/A]",
        "N/A",
        "[Not Supported]",
        "[Insufficient Permissions]",
        "[No data]",
        "[Function Not Found]",
        "",
    ],
)
def test_a_board_without_a_value_is_not_sick(cell: str) -> None:
    assert nvidia_smi.no_value(cell)
    assert nvidia_smi.sickness(cell) is None
    assert nvidia_smi.mib(cell) is None


@pytest.mark.parametrize(
    "cell", ["NVIDIA H200", "143771 MiB", "0", "580.126.20", "9.0", "GPU-0000", "Enabled"]
)
def test_a_value_is_a_value(cell: str) -> None:
    assert nvidia_smi.sickness(cell) is None
    assert not nvidia_smi.no_value(cell)


def test_memory_is_a_number_or_nothing() -> None:
    assert [nvidia_smi.mib(cell) for cell in ("411", "411 MiB", "0", "-1", "1e9", "411 GiB")] == [
        411, 411, 0, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "gpu"),
    [
        # dcgm-exporter#604, in the spellings of four releases of nvidia-smi
        (f"{HANDLE} GPU5: 0000:BA:00.0: Unknown Error", "gpu-lost", "GPU5 (0000:BA:00.0)"),
        (f"{HANDLE} GPU 0000:BA:00.0: Unknown Error", "gpu-lost", "GPU (0000:BA:00.0)"),
        # jamesstringer90/Easy-GPU-PV#276: another release's word
        ("Unable to detect the device handle for GPU0000:B1:00.0: Unknown Error", "gpu-lost",
         "GPU (0000:B1:00.0)"),
        # nvidia-smi(1), exit status 12
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA "
         "Display Driver is properly installed and present in your system.", "no-library", None),
        # nvml.h, NVML_ERROR_OPERATING_SYSTEM
        ("Failed to initialize NVML: GPU access blocked by the operating system", "gpu-silent", None),
        (f"{HANDLE} GPU 000:BA:80.0: Unknown Error", "gpu-lost", "GPU (000:BA:80.0)"),
        (f"{HANDLE} gpu 0000:01:00.0: GPU is lost.  Reboot the system", "gpu-lost", "GPU (0000:01:00.0)"),
        (f"{HANDLE} GPU3: 0000:4E:00.0: GPU requires reset", "gpu-reset", "GPU3 (0000:4E:00.0)"),
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126",
         "mismatch", None),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure",
         "no-driver", None),
        ("No devices were found", "no-gpu", None),
        ("Failed to initialize NVML: Unknown Error", "gpu-silent", None),
        ('Field "mig.mode.current" is not a valid field to query.', "field", None),
    ],
)  # fmt: skip
def test_a_refusal_of_nvidia_smi_is_understood(words: str, code: str, gpu: str | None) -> None:
    found = nvidia_smi.refusal(words)
    assert found is not None
    assert (found.code, found.gpu) == (code, gpu)


def test_words_that_nobody_knows_have_no_meaning() -> None:
    assert nvidia_smi.refusal("Segmentation fault") is None


def test_daemons_have_names() -> None:
    assert nvidia_smi.daemon("nvidia-cuda-mps-server") == "NVIDIA's MPS server"
    assert nvidia_smi.daemon("/usr/bin/nv-hostengine -n") == "DCGM"
    assert nvidia_smi.daemon("/opt/sglang/bin/python3") is None


def test_a_warning_names_its_gpu() -> None:
    # nvidia-smi(1), exit status 14, after a complete table
    text = "0, GPU-0, 4 MiB, Disabled\nWARNING: infoROM is corrupted at gpu 0000:BA:00.0\n"
    assert nvidia_smi.warnings(text) == [("0000:BA:00.0", "infoROM is corrupted")]
    assert nvidia_smi.warnings("0, GPU-0, 4 MiB, Disabled") == []
