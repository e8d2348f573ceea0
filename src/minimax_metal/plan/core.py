"""The one function that decides: ``plan(settings, facts)``.

Pure: it reads its arguments (and the packaged catalogue, once per process, if none is given), writes nothing
and contacts nobody. All reasons against a host are collected, none of them is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from minimax_metal.catalog import Catalog, Checkpoint, packaged_catalog
from minimax_metal.plan.access import check_access, check_mode, firewall_plan, tls_plan, with_fleet_tls
from minimax_metal.plan.alternatives import name_alternative
from minimax_metal.plan.disk import disk_plan
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.fast_profile import with_recipe
from minimax_metal.plan.fast_start import (
    check_cubins,
    kernel_cache_plan,
    loader_threads,
    page_cache_plan,
    precompile_plan,
)
from minimax_metal.plan.faults import asked, check_faults, forbidden, is_sound
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import check_generation, choose_format, find_fit, find_layouts
from minimax_metal.plan.guard import check_guard, confinement
from minimax_metal.plan.host import (
    check_host,
    check_occupants,
    find_board,
    find_platform,
    gpus_plan,
    platform_plan,
)
from minimax_metal.plan.kv_room import check_uncounted
from minimax_metal.plan.mirrors import with_mirrors
from minimax_metal.plan.model import ChecksPlan, DriverPlan, Plan, PrecompilePlan, Refusal, ServicePlan
from minimax_metal.plan.ranges import check_ranges
from minimax_metal.plan.serve import find_parsers, parser_words, service_plans
from minimax_metal.plan.settings import Settings, refuse_unknown
from minimax_metal.plan.speculative import check_draft, with_draft
from minimax_metal.plan.stack import (
    check_engine,
    cuda_plan,
    driver_plan,
    engine_plan,
    find_cuda,
    find_release,
    host_tools_plan,
)
from minimax_metal.plan.weights import draft_plan, find_model, model_plan, weights_plan


def plan(settings: Settings, facts: HostFacts, catalog: Catalog | None = None) -> Plan:
    """Return all decisions for one host.

    ``settings`` is the user's input, ``facts`` the host's state; ``catalog`` is the packaged catalogue unless
    an overlay made another. Never raises because of facts or numbers: problems become refusals.
    """
    catalog = catalog or packaged_catalog()
    found = Findings(accept=frozenset(settings.accept_refusals))
    for unknown in settings.unknown_role_variables:
        found.add(refuse_unknown(unknown))
    check_ranges(settings, found)
    check_mode(settings, found)
    tls = tls_plan(settings, facts.address)
    settings = with_fleet_tls(settings)
    settings, mirrors = with_mirrors(settings, catalog, found)
    settings = with_draft(settings, catalog, found)
    readable = check_host(facts, found)
    platform = find_platform(facts, catalog, found) if readable else None
    board = find_board(settings, facts, catalog, found) if readable else None
    formats = find_model(settings, catalog, found)
    release = find_release(settings, catalog, found)
    newest = release.release if release else "0"
    checkpoint = None
    if formats is not None:
        flags = asked(settings)
        checkpoint = choose_format(
            settings, formats, board, found,
            lambda one, spread: board is not None
            and forbidden(catalog.faults, one, board, newest, spread, flags),
        )  # fmt: skip
    settings = with_recipe(settings, checkpoint, board, release, catalog, found)
    fit = None
    if checkpoint and board:
        known = partial(is_sound, catalog.faults, checkpoint, board, newest)
        fit = find_fit(settings, checkpoint, board, found, known, formats.values() if formats else ())
    if checkpoint and board:
        check_generation(checkpoint, board, found)
        check_draft(settings, checkpoint, board, release, found)
        check_uncounted(settings, checkpoint, found)
    if checkpoint and release:
        check_engine(checkpoint, release, found)
    if release and board:
        check_cubins(settings, release, board, found)
    model = None
    if checkpoint:
        model = model_plan(settings, checkpoint, catalog.licences.get(checkpoint.licence), found)
    engine = engine_plan(settings, release, platform, catalog, mirrors, found) if release else None
    toolkit = find_cuda(settings, release, platform, catalog, found) if release else None
    driver: DriverPlan | None = None
    compat = False
    if release and toolkit and platform and board:
        driver, compat = driver_plan(
            settings, facts, release, toolkit, platform, board, mirrors, catalog, found
        )
    cuda = cuda_plan(toolkit, platform, compat) if toolkit else None
    draft = draft_plan(settings, model, catalog, found) if model else None
    disk = disk_plan(settings, facts, model, engine, found, draft) if model else None
    parsers = find_parsers(settings, checkpoint, release, found) if checkpoint else None
    weights = weights_plan(settings, checkpoint, model, catalog, found) if checkpoint and model else None
    services: tuple[ServicePlan, ...] = ()
    cache = kernel_cache_plan(engine, board, driver) if engine and board else None
    precompile: PrecompilePlan | None = None
    check_access(settings, release, found)
    check_guard(settings, checkpoint, release, found)
    if checkpoint and model and engine and cuda and parsers and board and fit and release and cache:
        verbatim = facts.what_if and settings.profile == "guide"
        threads = loader_threads(settings, facts, fit.spread)
        services = service_plans(
            settings, checkpoint, model, engine, cuda, cache, parsers, board, fit, release, threads,
            confinement(settings, facts, fit.spread.replicas), verbatim, found,
        )  # fmt: skip
        precompile = precompile_plan(settings, checkpoint, release, engine, board, cache, services)
    if checkpoint and board and release:
        argv = services[0].argv if services else (*parser_words(parsers), *settings.engine_extra_args)
        check_faults(
            catalog.faults, checkpoint, board, release.release, fit.spread if fit else None, argv, found
        )
    if checkpoint and board:
        name_alternative(settings, checkpoint, board, release, catalog, found)
    firewall = firewall_plan(settings, services, found)
    if readable:
        check_occupants(facts, range(settings.port, settings.port + max(1, len(services))), found)
    if not services and not found.refusals:
        # If a lifted refusal leaves nothing to start (16 ranks on 8 GPUs, an unknown model), it stands after
        # all.
        found.refusals, found.accepted = found.accepted, []
        found.warnings = [one for one in found.warnings if not one.code.startswith("accepted-")]
    checks = None
    if model and parsers:
        image = "image" in model.modalities
        checks = ChecksPlan(
            model=model.served_name,
            image=image,
            tool_calls=True,
            reasoning_parser=parsers.reasoning,
            tool_parser=parsers.tool,
            arguments=(
                *("--model", model.served_name, "--reasoning-parser", parsers.reasoning),
                "--image" if image else "--image-refused",
                *reasoning_arguments(checkpoint),
            ),
        )
    return Plan(
        host=settings.host,
        profile=settings.profile,
        refusals=tuple(found.refusals),
        accepted=tuple(found.accepted),
        warnings=tuple(found.warnings),
        differences=tuple(found.differences),
        platform=platform_plan(platform, facts) if platform else None,
        model=model,
        weights=weights,
        draft=draft,
        gpus=gpus_plan(board) if board else None,
        parallelism=fit.spread if fit else None,
        mirrors=mirrors,
        host_tools=host_tools_plan(platform, mirrors) if platform else None,
        engine=engine,
        driver=driver,
        cuda=cuda,
        tls=tls,
        services=services,
        firewall=firewall,
        kernel_cache=cache,
        precompile=precompile,
        page_cache=page_cache_plan(settings, facts, model, services) if model else None,
        capacity=fit.capacity if fit else None,
        limits=fit.limits if fit else None,
        layouts=find_layouts(settings, checkpoint, board) if checkpoint and board else (),
        disk=disk,
        checks=checks,
    )


def reasoning_arguments(checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """Return what ``metal check`` needs to know about a model's reasoning."""
    reasoning = checkpoint.reasoning if checkpoint else None
    if reasoning is None:
        return ()
    words = ["--always-reasons"] if reasoning.always else []
    if reasoning.efforts:
        words += ["--reasoning-efforts", ",".join(reasoning.efforts)]
    return tuple(words)


def setting_refusals(settings: Settings, catalog: Catalog | None) -> list[Refusal]:
    """Return errors in the settings alone, to report them beside variables that can't be read at all.

    Without a catalogue the model is not judged.
    """
    found = Findings(accept=frozenset(settings.accept_refusals))
    for unknown in settings.unknown_role_variables:
        found.add(refuse_unknown(unknown))
    check_ranges(settings, found)
    check_mode(settings, found)
    if catalog is not None:
        find_model(settings, catalog, found)
    return found.refusals


def refused_plan(host: str, refusals: Sequence[Refusal]) -> Plan:
    """Return the plan of a host for which nothing could be decided, for these reasons."""
    return Plan(
        host=host,
        profile="default",
        refusals=tuple(refusals),
        accepted=(),
        warnings=(),
        differences=(),
        platform=None,
        model=None,
        weights=None,
        draft=None,
        gpus=None,
        parallelism=None,
        mirrors=None,
        host_tools=None,
        engine=None,
        driver=None,
        cuda=None,
        tls=None,
        services=(),
        firewall=None,
        kernel_cache=None,
        precompile=None,
        page_cache=None,
        capacity=None,
        limits=None,
        layouts=(),
        disk=None,
        checks=None,
    )
