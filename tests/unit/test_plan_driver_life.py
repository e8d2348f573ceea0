"""Driver branches have an end: which one a host gets on which day, and the warnings about its end."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from minimax_metal.catalog import load_catalog, packaged_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.controller.verbs.plan import main
from minimax_metal.plan import Plan, Settings, parse_facts, plan
from minimax_metal.plan.driver.life import is_ending, is_over
from tests.unit.plan_helpers import codes, decide, raw_host, warned

PLATFORMS = list(packaged_catalog().platforms)
DAYS = [date(2026, 11, 29) + timedelta(days=30 * n) for n in range(40)]
"""Until February 2030: all branches in the catalogue have ended by then."""


def on(day: str, platform: str = "debian12", **variables: Any) -> Plan:
    return decide("H200", 8, model="M2.5", platform=platform, plan_date=day, **variables)


def host(driver: str, day: str = "2026-11-29", platform: str = "debian12", **variables: Any) -> Plan:
    named = {f"metal_{name}": value for name, value in variables.items()}
    settings = Settings.from_variables(
        "gpu01", {"metal_model": "M2.5", "metal_plan_date": day, "metal_trust_remote_code": True} | named
    )
    return plan(settings, parse_facts(raw_host("H200", 8, driver=driver, platform=platform)))


def said(result: Plan, code: str) -> str:
    (found,) = [one.message for one in result.warnings if one.code == code]
    return found


def refused(result: Plan) -> str:
    (found,) = [one.line("gpu01") for one in result.refusals]
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("day", DAYS, ids=str)
def test_a_host_without_a_driver_never_gets_a_dead_branch_in_silence(platform: str, day: date) -> None:
    """A time bomb in the catalogue: on any day, the default is supported or the host is refused."""
    result = on(day.isoformat(), platform)
    assert result.driver is not None
    branch = packaged_catalog().drivers[result.driver.branch]
    assert branch.kind in {"lts", "production"}
    assert result.fits == (not is_over(branch, day)), refused(result)
    if not result.fits:
        assert codes(result) == {"driver-branch-over"}
    if is_ending(branch, day):
        assert str(branch.end) in said(result, "driver-branch-ends")
    assert result.driver.pinning_package == f"nvidia-driver-pinning-{branch.branch}"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("day", DAYS, ids=str)
@pytest.mark.parametrize("driver", ["580.126.20", "590.48.01", "595.71.05", "610.57.04", "620.70.06"])
def test_a_host_that_runs_a_driver_never_keeps_a_dead_branch_in_silence(
    platform: str, day: date, driver: str
) -> None:
    branch = packaged_catalog().drivers[driver.split(".")[0]]
    result = host(driver, day.isoformat(), platform)
    assert result.driver is not None
    assert result.driver.branch == branch.branch
    assert codes(result) == ({"driver-branch-over"} if is_over(branch, day) else set())
    assert ("driver-branch-ends" in warned(result)) == is_ending(branch, day)
    named = host(driver, day.isoformat(), platform, driver_branch=branch.branch)
    assert named.fits
    assert ("driver-branch-over" in warned(named)) == is_over(branch, day)


def test_the_published_table_is_the_catalogues() -> None:
    # docs.nvidia.com/datacenter/tesla/drivers, editions 615 (R535, R610) and 620 (R580, R595, R620) of 2026.
    drivers = packaged_catalog().drivers
    ends = {number: str(one.end) if one.end else None for number, one in drivers.items()}
    assert ends["580"] == "2028-06-30"
    assert ends["595"] == "2027-03-31"
    assert ends["620"] == "2029-09-30"
    assert ends["610"] == "2026-08-31"
    assert ends["535"] == "2026-06-30"
    assert ends["570"] == "2026-02-28"  # the edition of 2025
    assert ends["590"] is None
    kinds = {number: one.kind for number, one in drivers.items()}
    assert {number for number, kind in kinds.items() if kind == "lts"} == {"535", "580", "620"}
    assert {number for number, kind in kinds.items() if kind == "production"} == {"570", "595"}
    open_only = {number for number, one in drivers.items() if "proprietary" not in one.modules}
    assert open_only == {"615", "620"}


def test_the_last_day_of_a_branch_is_its_end() -> None:
    assert host("595.71.05", "2027-03-31").fits
    assert not host("595.71.05", "2027-04-01").fits
    assert "driver-branch-ends" not in warned(host("595.71.05", "2026-12-30"))
    assert "driver-branch-ends" in warned(host("595.71.05", "2026-12-31"))  # 90 days


def test_a_branch_at_its_end_is_named_with_the_day_and_the_next() -> None:
    text = said(host("595.71.05", "2027-01-15"), "driver-branch-ends")
    assert "595 ends on 2027-03-31" in text
    assert "620 (LTS, until 2029-09-30)" in text
    assert 'metal_driver_branch: "620"' in text
    # The plan is the same tomorrow, or a second run would not find itself.
    assert said(host("595.71.05", "2027-01-16"), "driver-branch-ends") == text


def test_a_branch_that_is_over_is_refused_with_both_ways_out() -> None:
    line = refused(host("590.48.01", platform="debian13"))
    assert "driver branch 590 (new feature), no longer listed by NVIDIA" in line
    assert "595 (production, until 2027-03-31)" in line
    assert 'set metal_driver_branch: "595" and run playbooks/rollout.yml' in line
    assert 'set metal_driver_branch: "590" to keep it' in line
    assert "which ended on 2026-08-31" in refused(host("610.57.04"))
    lifted = host("610.57.04", accept_refusals=["driver-branch-over"])
    assert lifted.fits
    assert lifted.driver is not None
    assert lifted.driver.branch == "610"


def test_a_branch_that_was_named_is_only_warned_of() -> None:
    result = on("2026-11-29", driver_branch="610")
    assert result.fits
    assert "which ended on 2026-08-31" in said(result, "driver-branch-over")
    assert "no longer listed" in said(on("2026-11-29", driver_branch="590"), "driver-branch-over")


def test_what_runs_is_kept_wherever_it_came_from() -> None:
    # Debian 12's packages of 580 on Debian 13: cuda-repo-management issue 38 (August 2026).
    result = host("580.126.20", platform="debian13")
    assert result.fits
    assert result.driver is not None
    assert result.driver.branch == "580"
    assert not {"driver-branch", "driver-change"} & warned(result)
    # Fetching it there is another matter.
    fetched = on("2026-11-29", "debian13", driver_branch="580")
    assert "not known to be in NVIDIA's repository for debian13" in said(fetched, "driver-branch")


def test_a_branch_that_the_catalogue_does_not_know_is_kept_and_said() -> None:
    result = host("640.10.01")
    assert result.fits
    assert result.driver is not None
    assert result.driver.branch == "640"
    assert "its end of life is unknown" in said(result, "driver-branch")


def test_a_branch_that_nobody_saw_in_a_repository_is_said() -> None:
    assert "was not seen" in said(on("2027-02-01", "debian13"), "driver-branch")
    assert "driver-branch" not in warned(on("2026-11-29", "debian13"))


@pytest.mark.parametrize("driver", ["535.161.08", "570.172.08", "575.57.08", "550.163.01"])
def test_a_driver_too_old_for_cuda_is_replaced_by_a_living_branch(driver: str) -> None:
    result = host(driver)
    assert result.fits
    assert result.driver is not None
    assert result.driver.branch == "580"
    assert "driver-change" in warned(result)


def test_a_branch_is_a_number() -> None:
    for wrong in ("595.71.05", "R595", "new"):
        line = refused(on("2026-11-29", driver_branch=wrong))
        assert f"metal_driver_branch {wrong}" in line
        assert "nvidia_driver_version takes one exact release" in line


def test_proprietary_modules_of_a_branch_without_them_are_refused() -> None:
    line = refused(on("2026-11-29", driver_branch="620", open_modules=False))
    assert "proprietary kernel modules of driver branch 620" in line
    assert 'metal_driver_branch: "580"' in line
    # Later branches than the catalogue's have none either.
    assert codes(on("2026-11-29", driver_branch="640", open_modules=False)) == {"open-modules"}
    assert on("2026-11-29", driver_branch="595", open_modules=False).fits
    # By default the branch is one that has them, while there is one; a driver without them is replaced.
    assert on("2026-11-29", open_modules=False).driver.branch == "580"  # type: ignore[union-attr]
    assert host("620.70.06", open_modules=False).driver.branch == "580"  # type: ignore[union-attr]
    last = refused(on("2028-08-01", open_modules=False))
    assert "with proprietary kernel modules that is supported on 2028-08-01" in last
    assert "remove metal_open_modules" in last


@pytest.mark.parametrize(
    ("platform", "branch", "packages"),
    [
        ("debian12", "580", ["nvidia-kernel-open-dkms", "nvidia-driver-cuda"]),
        ("debian12", "620", ["nvidia-kernel-open-dkms", "nvidia-driver-cuda"]),
        ("debian13", "595", ["nvidia-kernel-open-dkms", "nvidia-driver-cuda"]),
        (
            "ubuntu2404",
            "580",
            ["nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-utils-580", "nvidia-persistenced"],
        ),
        ("ubuntu2404", "595", ["nvidia-dkms-open", "libnvidia-compute", "nvidia-persistenced"]),
        ("ubuntu2204", "620", ["nvidia-dkms-open", "libnvidia-compute", "nvidia-persistenced"]),
    ],
)
def test_packages_have_the_names_of_their_branch(platform: str, branch: str, packages: list[str]) -> None:
    # NVIDIA Driver Installation Guide: compute-only installation, and the packages renamed on Ubuntu at 590.
    driver = on("2026-11-29", platform, driver_branch=branch).driver
    assert driver is not None
    headers = list(packaged_catalog().platforms[platform].kernel_headers)
    assert list(driver.packages) == [*headers, *packages, f"nvidia-fabricmanager={branch}.*"]
    assert "nvidia-persistenced.service" in driver.services
    rack = decide("GB200", 4, model="M2.5", platform=platform, driver_branch=branch).driver
    assert rack is not None
    # Without a branch in their names from 580 on: NVIDIA/gpu-driver-container, nvidia-driver of ubuntu24.04.
    assert f"nvidia-imex={branch}.*" in rack.packages


def test_an_overlay_adds_a_branch_and_takes_one_away() -> None:
    ours = {"confidence": "U", "source": "our mirror"}
    new = {"kind": "lts", "end": "2031-06-30", "modules": ["open"], "read": "2029-12-01"} | ours
    catalog = load_catalog([{"drivers": {"700": new | {"platforms": {"debian12": ours}}}}])
    later = decide("H200", 8, catalog=catalog, model="M2.5", plan_date="2030-01-01")
    assert later.driver is not None
    assert later.driver.branch == "700"
    without = load_catalog([{"drivers": {580: {"platforms": {"debian12": None}}}}])
    other = decide("H200", 8, catalog=without, model="M2.5", plan_date="2026-11-29")
    assert other.driver is not None
    assert other.driver.branch == "620"
    with pytest.raises(UserError, match=r"drivers\.580\.end"):
        load_catalog([{"drivers": {"580": {"end": "June 2028"}}}])
    with pytest.raises(UserError, match="drivers is not a mapping"):
        load_catalog([{"drivers": ["580"]}])


def test_the_day_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "M2.5", "--gpu", "H200", "--count", "8", "--platform", "debian13", "--json"]
    assert main([*words, "--date", "2026-11-29"]) == 0
    assert '"driver_branch": "595"' in capsys.readouterr().out
    assert main([*words, "--set", "metal_plan_date=2030-01-01"]) == 1
    assert "driver-branch-over" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"metal_plan_date: 'tomorrow', expected a day as 2026-12-31"):
        main([*words, "--date", "tomorrow"])
    for wrong in ("2026-02-30", "20261231", 20261231, "2026-W10-1", True):
        with pytest.raises(UserError, match="expected a day as"):
            Settings.from_variables("gpu01", {"metal_plan_date": wrong})
    assert Settings.from_variables("gpu01", {"metal_plan_date": date(2027, 1, 1)}).plan_date == date(
        2027, 1, 1
    )


def test_by_default_the_day_is_today() -> None:
    assert decide("H200", 8, model="M2.5") == decide("H200", 8, model="M2.5", plan_date="2026-11-29")
