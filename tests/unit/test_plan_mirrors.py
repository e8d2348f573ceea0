"""One table of URLs: origins, presets, single variables, the fleet's cache, a served bundle."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.catalog import load_catalog
from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.plan.core import plan
from minimax_metal.plan.facts import parse_facts
from minimax_metal.plan.settings import Settings
from tests.unit.test_plan_contract import raw

CACHE = "http://10.0.0.5:8642"
BUNDLE = "http://controller.example.net:8643"
UBUNTU_2204 = 'ID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n'


def made(release: str | None = None, **variables: Any) -> dict[str, Any]:
    facts = raw("H20", 4) if release is None else raw("H20", 4, release)
    return plan_from_variables("gpu01", {"metal_model": "MiniMax-M2.5", **variables}, facts)


def test_without_a_word_the_host_keeps_its_own_index_and_archives() -> None:
    found = made()
    mirrors = found["mirrors"]
    assert mirrors["package_index_url"] is None
    assert mirrors["distribution_url"] is None
    assert mirrors["python_url"] is None
    assert mirrors["direct_hosts"] == []
    assert found["host_tools"]["pip_environment"] == {}
    assert not {"UV_DEFAULT_INDEX", "UV_PYTHON_INSTALL_MIRROR"} & set(found["engine"]["uv_environment"])
    assert found["driver"]["repository_url"] == (
        "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"
    )


def test_the_preset_for_china_sets_every_url() -> None:
    found = made(metal_mirrors="china")
    index = "https://pypi.tuna.tsinghua.edu.cn/simple"
    assert found["host_tools"]["pip_environment"] == {"PIP_INDEX_URL": index}
    for part in ("host_tools", "engine"):
        environment = found[part]["uv_environment"]
        assert environment["UV_DEFAULT_INDEX"] == index
        assert environment["UV_PYTHON_INSTALL_MIRROR"].startswith("https://registry.npmmirror.com/")
    assert found["driver"]["repository_url"] == (
        "https://developer.download.nvidia.cn/compute/cuda/repos/debian12/x86_64"
    )
    assert found["mirrors"]["distribution_url"] == "https://mirrors.tuna.tsinghua.edu.cn"
    assert [source["kind"] for source in found["weights"]["sources"]] == ["modelscope", "hf-mirror"]


def test_a_variable_that_is_set_counts_more_than_the_preset() -> None:
    found = made(
        metal_mirrors="china",
        metal_package_index_url="https://index.example.net/simple/",
        metal_vendor_repository_url="https://mirror.example.net/cuda",
        metal_python_mirror="https://mirror.example.net/python",
        metal_distribution_mirror_url="https://mirror.example.net/linux/",
        metal_weights_source="huggingface",
    )
    assert found["mirrors"]["package_index_url"] == "https://index.example.net/simple"
    assert found["mirrors"]["vendor_url"] == "https://mirror.example.net/cuda"
    assert found["mirrors"]["python_url"] == "https://mirror.example.net/python"
    assert found["mirrors"]["distribution_url"] == "https://mirror.example.net/linux"
    assert [source["kind"] for source in found["weights"]["sources"]] == ["huggingface"]


def test_a_cache_stands_before_every_origin() -> None:
    found = made(metal_cache_url=CACHE, metal_mirrors="china")
    mirrors = found["mirrors"]
    assert mirrors["package_index_url"] == f"{CACHE}/pypi/simple"
    assert mirrors["distribution_url"] == f"{CACHE}/apt/https/mirrors.tuna.tsinghua.edu.cn"
    assert mirrors["direct_hosts"] == ["10.0.0.5"]
    assert mirrors["origins"]["package_index"] == "https://pypi.tuna.tsinghua.edu.cn/simple"
    assert found["driver"]["repository_url"] == f"{CACHE}/nvidia/debian12/x86_64"
    assert found["host_tools"]["pip_environment"] == {
        "PIP_INDEX_URL": f"{CACHE}/pypi/simple",
        "PIP_TRUSTED_HOST": "10.0.0.5:8642",
        "PIP_DEFAULT_TIMEOUT": "600",
    }
    assert found["engine"]["uv_environment"]["UV_HTTP_TIMEOUT"] == "600"


def test_with_a_cache_and_no_mirror_archives_stay_the_hosts_own() -> None:
    mirrors = made(metal_cache_url=CACHE)["mirrors"]
    assert mirrors["distribution_url"] is None
    assert mirrors["cache_url"] == CACHE
    assert mirrors["origins"]["package_index"] is None


def test_a_served_bundle_replaces_the_origins_and_holds_the_weights() -> None:
    found = made(UBUNTU_2204, metal_mirrors=f"{BUNDLE}/")
    mirrors = found["mirrors"]
    assert mirrors["package_index_url"] == f"{BUNDLE}/pypi/simple"
    assert mirrors["distribution_url"] == f"{BUNDLE}/apt"
    assert mirrors["stale_lists"] is False
    assert made(metal_mirrors=BUNDLE, metal_frozen_sources=True)["mirrors"]["stale_lists"] is True
    assert mirrors["direct_hosts"] == ["controller.example.net"]
    assert found["driver"]["repository_url"] == f"{BUNDLE}/nvidia/ubuntu2204/x86_64"
    # The distribution's Python is too old there: uv brings one, from the bundle too.
    assert found["host_tools"]["uv_environment"]["UV_PYTHON_INSTALL_MIRROR"] == f"{BUNDLE}/python"
    source = found["weights"]["sources"][0]
    assert source["kind"] == "http"
    assert source["endpoint"] == f"{BUNDLE}/weights/MiniMaxAI/MiniMax-M2.5/{found['model']['revision']}"


def test_a_cache_may_stand_before_a_bundle() -> None:
    mirrors = made(metal_mirrors=BUNDLE, metal_cache_url=CACHE)["mirrors"]
    assert mirrors["origins"]["vendor"] == f"{BUNDLE}/nvidia"
    assert mirrors["distribution_url"] == f"{CACHE}/apt/http/controller.example.net:8643/apt"


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"metal_mirrors": "chnia"}, "mirror-unknown", "did you mean china?"),
        ({"metal_mirrors": "http://user:word@host/"}, "mirror-url", "without credentials"),
        ({"metal_package_index_url": "index.example.net"}, "mirror-url", "metal_package_index_url"),
        ({"metal_vendor_repository_url": 'https://a/"; evil'}, "mirror-url", "metal_vendor_repository_url"),
        ({"metal_cache_url": "https://10.0.0.5:8642"}, "mirror-url", "http://HOST:PORT"),
        ({"metal_cache_url": "http://10.0.0.5"}, "mirror-url", "http://HOST:PORT"),
        ({"metal_cache_url": "http://10.0.0.5:80"}, "mirror-url", "http://HOST:PORT"),
    ],
)
def test_what_is_no_mirror_is_refused(variables: dict[str, str], code: str, words: str) -> None:
    refusals = [one for one in made(**variables)["refusals"] if one["code"] == code]
    assert len(refusals) == 1
    assert words in " ".join(refusals[0].values())


def test_an_overlay_adds_a_preset_of_ones_own_site() -> None:
    catalog = load_catalog([{"mirrors": {"site": {"package_index": "https://nexus.example.net/simple"}}}])
    settings = Settings.from_variables("gpu01", {"metal_model": "MiniMax-M2.5", "metal_mirrors": "site"})
    found = plan(settings, parse_facts(raw("H20", 4)), catalog).mirrors
    assert found is not None
    assert found.package_index_url == "https://nexus.example.net/simple"
    assert found.vendor_url == "https://developer.download.nvidia.com/compute/cuda/repos"
