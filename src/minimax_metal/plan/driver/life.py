"""Which branch of NVIDIA's driver a host gets: one that is supported on the day of the plan.

Pure, except for the clock if ``metal_plan_date`` is not set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from minimax_metal.catalog.schema import DriverBranch, DriverPackages, Platform
from minimax_metal.common.documents import digits
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

ENDING_DAYS = 90
"""Days before a branch's end from which a plan warns, and no host gets it by default."""
KINDS = {"lts": "LTS", "production": "production", "new-feature": "new feature"}
DEFAULTS = ("lts", "production")
"""Kinds that hosts get by default; new-feature branches end within months."""


def plan_day(settings: Settings) -> date:
    """Return the date that a plan is made for: ``metal_plan_date``, or today (UTC)."""
    return settings.plan_date or today()


def today() -> date:
    """Return the date by this machine's clock, in UTC."""
    return datetime.now(UTC).date()


def is_over(branch: DriverBranch, day: date) -> bool:
    """Return whether NVIDIA no longer supports a branch on a date."""
    return branch.end < day if branch.end else not branch.listed


def is_ending(branch: DriverBranch, day: date) -> bool:
    """Return whether a branch is supported, but for at most :data:`ENDING_DAYS` more."""
    return branch.end is not None and 0 <= (branch.end - day).days <= ENDING_DAYS


def describe(branch: DriverBranch) -> str:
    """Return a branch as in messages: ``580 (LTS, until 2028-06-30)``."""
    life = f", until {branch.end}" if branch.end else "" if branch.listed else ", no longer listed by NVIDIA"
    return f"{branch.branch} ({KINDS[branch.kind]}{life})"


def package_names(platform: Platform, branch: str) -> DriverPackages:
    """Return the names of a branch's packages on a platform."""
    for limit, names in sorted(platform.driver_before.items(), key=lambda one: _number(one[0])):
        if _number(branch) < _number(limit):
            return names
    return platform.driver


@dataclass(frozen=True)
class Branches:
    """The catalogue's branches, on one platform and one date.

    Attributes:
        drivers: branches by number.
        platform: the platform of the repository.
        day: the date of the plan.
        minimum: oldest driver version that CUDA runs on.
        flavour: of the kernel modules, ``open`` or ``proprietary``.
    """

    drivers: Mapping[str, DriverBranch]
    platform: Platform
    day: date
    minimum: str
    flavour: str

    def carried(self) -> list[DriverBranch]:
        """LTS and production branches that the platform's repository carries, oldest first."""
        slug = self.platform.slug
        found = [one for one in self.drivers.values() if slug in one.platforms and one.kind in DEFAULTS]
        return sorted(found, key=lambda one: _number(one.branch))

    def alive(self) -> list[DriverBranch]:
        """Return the supported ones that suit CUDA and the kernel modules, best first.

        Branches that end soon come last. Before that: those seen in the repository before inferred ones, LTS
        before production, and the longest in use first.
        """
        fitting = [
            one
            for one in self.carried()
            if not is_over(one, self.day) and self.is_new_enough(one.branch) and self.has_modules(one.branch)
        ]
        slug = self.platform.slug
        return sorted(
            fitting,
            key=lambda one: (
                is_ending(one, self.day), one.platforms[slug].confidence == "C", one.kind != "lts",
            ),
        )  # fmt: skip

    def after(self, branch: DriverBranch) -> DriverBranch | None:
        """Return the branch to move to from one that ends or has ended: a newer one, if there is any."""
        last = branch.end or date.min
        longer = [one for one in self.alive() if one is not branch and (one.end or date.max) > last]
        newer = [one for one in longer if _number(one.branch) > _number(branch.branch)]
        return next(iter(newer or longer), None)

    def is_new_enough(self, branch: str) -> bool:
        """Return whether CUDA runs on some release of a branch."""
        return _number(branch) >= int(self.minimum.split(".")[0])

    def has_modules(self, branch: str) -> bool:
        """Return whether a branch has kernel modules of the flavour; includes branches later than the
        catalogue's.
        """
        if known := self.drivers.get(branch):
            return self.flavour in known.modules
        lacking = [
            digits(one.branch) or 0 for one in self.drivers.values() if self.flavour not in one.modules
        ]
        return not lacking or (digits(branch) or 0) < min(lacking)


def find_branch(settings: Settings, facts: HostFacts, branches: Branches, found: Findings) -> str:
    """Return the requested branch; else the running one, if it is good enough; else a supported one.

    The repository matters only for a branch that must be fetched: a host keeps a branch that came from
    elsewhere.
    """
    if settings.driver_branch is not None:
        _judge(settings.driver_branch, branches, found, named=True, runs=_running(facts))
        return settings.driver_branch
    loaded, runs = facts.loaded_driver, _running(facts)
    good = version_key(loaded or "0") >= version_key(branches.minimum) and branches.has_modules(runs)
    if runs and (good or settings.cuda_compat):
        _judge(runs, branches, found, named=False, runs=runs)
        return runs
    chosen = next(iter(branches.alive()), None)
    if chosen is None:
        return _nothing_lives(branches, found)
    if loaded:
        found.warn("driver-change", f"driver {loaded} will be replaced by branch {chosen.branch}")
    _judge(chosen.branch, branches, found, named=False, runs=runs)
    return chosen.branch


def _running(facts: HostFacts) -> str:
    return (facts.loaded_driver or "").split(".")[0]


def _judge(number: str, branches: Branches, found: Findings, *, named: bool, runs: str) -> None:
    """Report a branch's support dates, and whether the repository has it."""
    branch = branches.drivers.get(number)
    if branch is None:
        if branches.is_new_enough(number):
            found.warn(
                "driver-branch",
                f"driver branch {number} is not in the catalogue, so its end of life is unknown; the "
                f"catalogue has {_list(branches.drivers.values())}",
            )
        return
    following = branches.after(branch)
    if is_over(branch, branches.day):
        _over(branch, following, branches, found, named=named)
    elif is_ending(branch, branches.day):
        move = f"the next is {describe(following)}: {_move(following)}" if following else (
            f"the catalogue has no later one for {branches.platform.slug}: update it"
        )  # fmt: skip
        found.warn("driver-branch-ends", f"driver branch {number} ends on {branch.end}; {move}")
    if number == runs:
        return
    place = branch.platforms.get(branches.platform.slug)
    if place is None:
        found.warn(
            "driver-branch",
            f"driver branch {number} is not known to be in NVIDIA's repository for "
            f"{branches.platform.slug}; known there are {_list(branches.carried())}",
        )
    elif place.confidence == "C":
        found.warn(
            "driver-branch",
            f"driver branch {number} was not seen in NVIDIA's repository for "
            f"{branches.platform.slug}; only its installation guide lists the distribution",
        )


def _over(
    branch: DriverBranch, following: DriverBranch | None, branches: Branches, found: Findings, *, named: bool
) -> None:
    ended = f"which ended on {branch.end}" if branch.end else "no longer listed by NVIDIA"
    what = f"driver branch {branch.branch} ({KINDS[branch.kind]}), {ended}"
    if named:
        move = f"; the next is {describe(following)}" if following else ""
        found.warn("driver-branch-over", f"{what}: kept because metal_driver_branch names it{move}")
        return
    keep = f'set metal_driver_branch: "{branch.branch}" to keep it'
    found.refuse(
        "driver-branch-over",
        what,
        f"a branch that NVIDIA supports on {branches.day}: {_list(branches.alive()) or 'none is known'}",
        f"{_move(following)}; {keep}" if following else f"update the catalogue; {keep}",
    )


def _nothing_lives(branches: Branches, found: Findings) -> str:
    """Refuse a platform without a supported branch; a lifted refusal continues with the newest."""
    carried = branches.carried()
    fitting = [one for one in carried if branches.has_modules(one.branch)] or carried
    living = [one for one in fitting if not is_over(one, branches.day)]
    if living and branches.has_modules(living[-1].branch):
        return living[-1].branch  # too old for CUDA, which is refused as driver-too-old
    found.refuse(
        "driver-branch-over",
        f"no driver branch for {branches.platform.slug} with {branches.flavour} kernel modules that "
        f"is supported on {branches.day}: {_list(fitting) or 'the catalogue has none'}",
        "an LTS or production branch that NVIDIA supports",
        "remove metal_open_modules"
        if branches.flavour == "proprietary"
        else "update this project, add the branch under drivers in a metal_catalog_overlay, or name one with "
        "metal_driver_branch",
    )
    return fitting[-1].branch if fitting else "0"


def _number(branch: str) -> int:
    """Return a branch as a number; 0 for a text that is not one."""
    return digits(branch) or 0


def _move(following: DriverBranch) -> str:
    return f'set metal_driver_branch: "{following.branch}" and run playbooks/rollout.yml, host by host'


def _list(branches: Iterable[DriverBranch]) -> str:
    return ", ".join(describe(one) for one in branches)
