"""Compare the catalogue's engines with an unpacked wheel and with their own locks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from minimax_metal.catalog import Catalog
from minimax_metal.catalog.load import HERE
from minimax_metal.common.errors import UserError
from minimax_metal.plan.fast_profile import known_in
from tools.audit.rows import Row, compared, read_text, skipped
from tools.engine_bump import allowed, cuda_of_lock, read_wheel

QUANTISATIONS = {"fp8": ("fp8.py", "Fp8Config"), "nvfp4": ("modelopt_quant.py", "ModelOptFp4Config")}
"""Format to the place where the engine states its minimum compute capability."""


def compare_locks(catalog: Catalog) -> Iterator[Row]:
    """Compare torch and CUDA of every release with the locks that install it."""
    for release, engine in catalog.engines.items():
        for python, name in engine.locks.items():
            path = Path(name) if name.startswith("/") else HERE / "locks" / name
            text = read_text(path, "a lock of the catalogue")
            where, against = f"engine {release}", f"lock {path.name}"
            for package, ours in (("sglang", release), ("torch", engine.torch)):
                found = re.search(rf"^{package}==([\w.]+)", text, re.MULTILINE)
                yield compared(where, f"{package} (Python {python})", ours, found and found.group(1), against)
            yield compared(where, f"cuda (Python {python})", engine.cuda, cuda_of_lock(text), against)


def installed() -> Path | None:
    """Return the lab's engine environment, if it was created."""
    from lab.engine.environment import cache_root, lock_digest

    home = cache_root() / "engine" / lock_digest()
    return next(iter(sorted(home.glob("lib/python3.*/site-packages"))), None)


def _least_capability(text: str, name: str, form: str) -> int | None:
    """Return the class's number; of ``100 if self.use_mxfp8 else 80`` the one of this format."""
    body = re.search(rf"^class {name}\b.*?(?=^class |\Z)", text, re.MULTILINE | re.DOTALL)
    found = body and re.search(
        r"def get_min_capability\(.*?return (\d+)(?: if self\.use_(\w+) else (\d+))?",
        body.group(0),
        re.DOTALL,
    )
    if not found:
        return None
    return int(found.group(3) if found.group(2) and found.group(2) != form else found.group(1))


def compare_engine(catalog: Catalog, tree: Path) -> Iterator[Row]:
    """Compare one wheel's metadata, formats and recipe flags.

    Raises:
        UserError: ``tree`` contains no sglang, or a release that is not in the catalogue.
    """
    try:
        wheel = read_wheel(tree)
    except OSError as error:
        raise UserError(
            f"found {error.filename}: {error.strerror}; expected an unpacked sglang wheel"
        ) from error
    engine = catalog.engines.get(wheel.release)
    if engine is None:
        raise UserError(
            f"found sglang {wheel.release} in {tree}, expected one of {', '.join(catalog.engines)}; "
            "add it with make engine-bump"
        )
    where, against = f"engine {wheel.release}", f"wheel {wheel.release}"
    for field, ours, theirs in (
        ("torch", engine.torch, wheel.torch),
        ("entrypoints", set(engine.entrypoints), set(wheel.entrypoints)),
        ("tool_parsers", set(engine.tool_parsers), set(wheel.tool_parsers)),
        ("reasoning_parsers", set(engine.reasoning_parsers), set(wheel.reasoning_parsers)),
        ("architectures", set(engine.architectures), set(wheel.architectures)),
        ("plugins", engine.plugins, wheel.plugins),
        ("deep_gemm_precompile", engine.deep_gemm_precompile, wheel.deep_gemm_precompile),
        ("flashinfer_cubins", engine.flashinfer_cubins, wheel.flashinfer_cubins),
    ):
        yield compared(where, field, ours, theirs, against)
    good = allowed(engine.python, wheel.requires_python)
    yield compared(
        where, "python", list(engine.python), wheel.requires_python, against, same=good == list(engine.python)
    )
    yield compared(where, "flags of the plan", "all known", list(wheel.missing_flags) or "all known", against)
    yield from _formats(catalog, tree, wheel.release, against)
    yield from _recipes(catalog, tree, wheel.release, against)


def _formats(catalog: Catalog, tree: Path, release: str, against: str) -> Iterator[Row]:
    engine = catalog.engines[release]
    for formats in catalog.models.values():
        for one in formats.values():
            where = f"{one.name} {one.format}"
            if not set(one.architectures) & set(engine.architectures):
                yield skipped(where, "architectures", "this release does not serve it", against)
                continue
            for field, parser, known in (
                ("parsers.tool", one.parsers.tool, engine.tool_parsers),
                ("parsers.reasoning", one.parsers.reasoning, engine.reasoning_parsers),
                ("guide_parsers.tool", one.guide_parsers.tool, engine.tool_parsers),
                ("guide_parsers.reasoning", one.guide_parsers.reasoning, engine.reasoning_parsers),
            ):
                yield compared(where, field, parser, list(known), against, same=parser in known)
            yield compared(
                where, "architectures", list(one.architectures), list(engine.architectures), against,
                same=set(one.architectures) <= set(engine.architectures),
            )  # fmt: skip
            file, name = QUANTISATIONS.get(one.format, ("", ""))
            path = tree / "sglang" / "srt" / "layers" / "quantization" / file
            there = bool(file) and path.exists()
            least = _least_capability(read_text(path, "the wheel"), name, one.format) if there else None
            if least is None:
                yield skipped(where, "generations", "the wheel has no minimum capability", against)
                continue
            lowest = min(
                round(float(text) * 10) for text in (*one.generations.proven, *one.generations.unproven)
            )
            yield compared(where, "generations", lowest, f">= {least}", against, same=lowest >= least)
            if one.moe_block and file == "fp8.py":
                rule = "intermediate_size_per_partition % block_n != 0" in read_text(path, "the wheel")
                yield compared(where, "moe_block rule", True, rule, against)


def _recipes(catalog: Catalog, tree: Path, release: str, against: str) -> Iterator[Row]:
    srt = tree / "sglang" / "srt"
    arguments = "\n".join(
        read_text(path, "the wheel")
        for path in [srt / "server_args.py", *sorted((srt / "arg_groups").rglob("*.py"))]
        if path.exists()
    )
    everything: str | None = None
    for name, recipe in catalog.recipes.items():
        for part in recipe.args:
            flag = part.words[0]
            there = (
                flag in arguments or re.search(rf"\b{flag[2:].replace('-', '_')}\b", arguments) is not None
            )
            ours = known_in(part.since, part.before, release)
            # A flag that is still accepted as deprecated may be omitted; a planned one must exist.
            yield compared(f"recipe {name}", flag, ours, there, against, same=there or not ours)
        for variable in recipe.environment:
            if everything is None:
                everything = "\n".join(read_text(path, "the wheel") for path in sorted(srt.rglob("*.py")))
            ours = known_in(variable.since, variable.before, release)
            yield compared(f"recipe {name}", variable.name, ours, variable.name in everything, against)
