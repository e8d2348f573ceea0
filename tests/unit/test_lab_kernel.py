"""The contents of the driver's packages for hosts with their own kernel, and for those without."""

from __future__ import annotations

import pytest

from lab.vendor.debian import Package
from lab.vendor.packages import PLATFORMS, repository_packages


def packages(modules: bool) -> dict[tuple[str, str], Package]:
    listed = repository_packages(PLATFORMS[0], b"", "0" * 8, modules)
    return {(package.name, package.version): package for package in listed}


@pytest.mark.parametrize("version", PLATFORMS[0].drivers)
def test_modules_are_sources_that_dkms_builds(version: str) -> None:
    package = packages(modules=True)["nvidia-kernel-open-dkms", f"{version}-1"]
    conf = package.files[f"/usr/src/nvidia-{version}/dkms.conf"].content.decode()
    assert f'PACKAGE_VERSION="{version}"' in conf
    assert 'BUILT_MODULE_NAME[1]="nvidia-uvm"' in conf
    assert "@VERSION@" not in package.files[f"/usr/src/nvidia-{version}/Makefile"].content.decode()
    assert f"common.postinst nvidia {version}" in package.scripts["postinst"]


def test_hosts_without_a_kernel_of_their_own_get_no_sources() -> None:
    for package in packages(modules=False).values():
        assert not any(name.startswith("/usr/src") for name in package.files)
    assert set(packages(modules=True)) == set(packages(modules=False))
