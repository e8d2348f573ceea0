"""Which model is served, and the sources of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

from minimax_metal.catalog import Catalog, Checkpoint
from minimax_metal.catalog.schema import Licence, SeparateDraft
from minimax_metal.plan.findings import Findings, near, near_of_all
from minimax_metal.plan.mirrors import bundle_url
from minimax_metal.plan.model import DraftPlan, ModelPlan, WeightsPlan, WeightsSource
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.speculative import draft_path, draft_revision


def model_named(text: str, catalog: Catalog) -> str | None:
    """Return the catalogue's name for "minimax m2.5", "M2.5" or a repository's id.

    Letter case, spaces, hyphens and underscores don't matter.
    """
    wanted = _folded(text)
    for name, formats in catalog.models.items():
        names = {_folded(name)}
        for checkpoint in formats.values():
            names.update(_folded(alias) for alias in checkpoint.aliases)
            names.update(_folded(repository) for repository in checkpoint.repositories.values())
        if wanted in names:
            return name
    return None


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.casefold())


def find_model(settings: Settings, catalog: Catalog, found: Findings) -> dict[str, Checkpoint] | None:
    """Return the formats of the requested model; its name, an alias or a repository's id will do."""
    if not settings.model:
        found.refuse(
            "model-missing",
            "no metal_model",
            "a model from the catalogue",
            f"set metal_model to one of {', '.join(catalog.models)}",
        )
        return None
    if name := model_named(settings.model, catalog):
        return catalog.models[name]
    found.refuse(
        "model-unknown",
        f"metal_model {settings.model}",
        "a model from the catalogue",
        f"{near_of_all(settings.model, catalog.models)} (or add it with metal_catalog_overlay)",
    )
    return None


def instance_name(settings: Settings, model: ModelPlan) -> str:
    """Return the base name of units; several replicas have a number after it."""
    return settings.instance or model.name.casefold()


def model_plan(
    settings: Settings, checkpoint: Checkpoint, licence: Licence | None, found: Findings
) -> ModelPlan:
    """Return the model's part of the plan; reports a licence with restrictions."""
    revision = settings.model_revision or checkpoint.revision
    if revision is None:
        found.warn(
            "revision-unpinned",
            f"no pinned revision of {checkpoint.name} {checkpoint.format} is known: the newest is "
            "used; set metal_model_revision",
        )
        revision = "main"
    for code, message in checkpoint.warnings.items():
        found.warn(code, message)
    repository = checkpoint.repositories["huggingface"]
    _say_licence(f"{checkpoint.name} {checkpoint.format}", licence, repository, found)
    return ModelPlan(
        name=checkpoint.name,
        format=checkpoint.format,
        served_name=settings.served_model_name or checkpoint.published_name,
        repositories={str(key): value for key, value in checkpoint.repositories.items()},
        revision=revision,
        path=f"{settings.weights_directory}/{repository}/{revision}",
        bytes=checkpoint.bytes.value,
        files=checkpoint.files.value,
        modalities=checkpoint.modalities,
        max_sequence=checkpoint.max_sequence.value,
        max_output=checkpoint.max_output.value if checkpoint.max_output else None,
        trust_remote_code=(
            checkpoint.trust_remote_code if settings.trust_remote_code is None else settings.trust_remote_code
        ),
        licence=checkpoint.licence,
        sampling=asdict(checkpoint.sampling) if checkpoint.sampling else None,
        architectures=checkpoint.architectures,
    )


def _say_licence(what: str, licence: Licence | None, repository: str, found: Findings) -> None:
    """Report a licence's restrictions."""
    if licence and licence.restricts:
        found.warn(
            "licence",
            f"{what} is under the {licence.title}: {licence.restricts} "
            f"({licence.source}); read it in {repository}",
        )


def _endpoints(settings: Settings) -> dict[str, str | None]:
    return {
        "huggingface": settings.huggingface_endpoint,
        "hf-mirror": settings.hf_mirror_endpoint,
        "modelscope": settings.modelscope_endpoint,
    }


def draft_plan(settings: Settings, model: ModelPlan, catalog: Catalog, found: Findings) -> DraftPlan | None:
    """Return a draft from its own repository; only hubs are its sources: a directory or a bundle holds one
    model.
    """
    draft = settings.draft
    revision = draft_revision(settings, draft) if draft else None
    if draft is None or revision is None:
        return None
    sources = tuple(_draft_sources(settings, draft, revision, catalog))
    if not sources:
        hubs = [kind for kind, one in catalog.sources.items() if one.protocol == "huggingface"]
        found.refuse(
            "speculative",
            f"no source of metal_weights_source ({', '.join(settings.weights_source)}) for {draft.name}",
            f"one of {', '.join(hubs)}",
            "set metal_weights_source, or remove metal_speculative_draft_model",
        )
        return None
    repository = draft.repositories["huggingface"]
    _say_licence(f"the draft {draft.name}", catalog.licences.get(draft.licence), repository, found)
    return DraftPlan(
        name=draft.name,
        repositories={str(key): value for key, value in draft.repositories.items()},
        revision=revision,
        path=draft_path(settings, draft),
        bytes=draft.bytes.value,
        licence=draft.licence,
        instance=f"{instance_name(settings, model)}-draft",
        sources=sources,
    )


def _draft_sources(
    settings: Settings, draft: SeparateDraft, revision: str, catalog: Catalog
) -> Iterator[WeightsSource]:
    endpoints = _endpoints(settings)
    for kind in settings.weights_source:
        source = catalog.sources.get(kind)
        # A revision on Hugging Face means nothing to another source.
        if source and source.protocol == "huggingface":
            endpoint = (endpoints.get(kind) or source.endpoint).rstrip("/")
            yield WeightsSource(kind, endpoint, draft.repositories["huggingface"], revision, None)


def weights_plan(
    settings: Settings, checkpoint: Checkpoint, model: ModelPlan, catalog: Catalog, found: Findings
) -> WeightsPlan:
    """Return the sources in the order they are tried, each with its own id and revision of the weights."""
    endpoints = _endpoints(settings)
    sources: list[WeightsSource] = []
    for kind in settings.weights_source:
        if kind.startswith("/"):
            repository = model.repositories["huggingface"]
            sources.append(WeightsSource("directory", None, repository, model.revision, kind))
            continue
        if kind == "bundle" and (bundle := bundle_url(settings)):
            repository = model.repositories["huggingface"]
            url = f"{bundle}/weights/{repository}/{model.revision}"
            sources.append(WeightsSource("http", url, repository, model.revision, None))
            continue
        if kind.startswith(("http://", "https://")):
            repository = model.repositories["huggingface"]
            sources.append(WeightsSource("http", kind.rstrip("/"), repository, model.revision, None))
            continue
        source = catalog.sources.get(kind)
        if source is None:
            found.refuse(
                "weights-source",
                f"metal_weights_source {kind}",
                f"{', '.join(catalog.sources)}, an absolute path or a URL",
                near(kind, catalog.sources),
            )
            continue
        published = model.repositories.get(source.protocol)
        if published is None:
            found.refuse(
                "weights-source",
                f"{model.name} {model.format} is not known to be published at {kind}",
                f"a source that has it: {', '.join(model.repositories)}",
                "set another metal_weights_source",
            )
            continue
        pinned = settings.model_revision or checkpoint.revisions.get(source.protocol)
        # A revision on Hugging Face means nothing to another source.
        same = model.revision if source.protocol == "huggingface" else source.revision
        endpoint = (endpoints.get(kind) or source.endpoint).rstrip("/")
        sources.append(WeightsSource(kind, endpoint, published, pinned or same or model.revision, None))
    if not settings.weights_source:
        found.refuse(
            "weights-source", "no metal_weights_source", "at least one", "remove it to use huggingface"
        )
    for kind, override in endpoints.items():
        if override and kind not in settings.weights_source:
            found.warn(
                "endpoint-unused",
                f"metal_{kind.replace('-', '_')}_endpoint is set, but {kind} is not in metal_weights_source",
            )
    for directory in settings.weights_adopt:
        if not directory.startswith("/"):
            found.refuse(
                "weights-adopt",
                f"metal_weights_adopt {directory}",
                "absolute paths of directories on the host",
                f"write it like /home/me/{directory}",
            )
    return WeightsPlan(
        bytes=model.bytes,
        instance=instance_name(settings, model),
        sources=tuple(sources),
        adopt=settings.weights_adopt,
    )
