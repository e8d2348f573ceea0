"""The fleet's cache: its settings, and nginx's handling of its template in front of an origin."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from minimax_metal.common import traffic
from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.plan import cache
from tests.support.origin import Origin, running
from tests.support.templates import render
from tests.unit.test_plan_contract import raw

CACHE = "http://10.0.0.5:8642"
JSON = "application/vnd.pypi.simple.v1+json"
UV = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


def made(**variables: Any) -> dict[str, Any]:
    return plan_from_variables("gpu01", {"metal_model": "MiniMax-M2.5", **variables}, raw("H20", 4))


def members(**variables: Any) -> dict[str, dict[str, Any]]:
    plan = made(metal_cache_url=CACHE, **variables)
    return {
        "gpu01": {"plan": plan, "archives": ["http://a.example.org/debian"], "address": "10.0.0.11"},
        "gpu02": {"plan": plan, "archives": ["http://b.example.org/debian"], "address": "gpu02.example.net"},
        "cache01": {"plan": None, "archives": None, "address": "10.0.0.5"},
    }


def resolve(name: str) -> list[str]:
    return {"gpu02.example.net": ["10.0.0.12"]}.get(name, [name] if name[0].isdigit() else [])


def test_a_cache_is_told_its_origins_its_archives_and_who_may_ask() -> None:
    table = cache.decide(members(), [], ["http://old.example.org/debian"], resolve)
    assert table["problem"] is None
    assert table["port"] == 8642
    assert table["index"] is None
    assert table["clients"] == ["10.0.0.11", "10.0.0.12", "10.0.0.5"]
    assert [one["path"] for one in table["archives"]] == [
        *("http/a.example.org/debian", "http/b.example.org/debian", "http/old.example.org/debian")
    ]
    assert cache.archive_places(table)[0] == {
        "location": "/nvidia/",
        "base": "https://developer.download.nvidia.com/compute/cuda/repos",
    }
    assert cache.decide(members(metal_mirrors="china"), [], [], resolve)["index"].startswith(
        "https://pypi.tuna."
    )
    assert cache.decide(members(), ["10.0.0.0/8"], [], resolve)["clients"] == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hosts: {"cache01": hosts["cache01"]}, "expected metal_cache_url"),
        (lambda hosts: hosts | {"gpu02": {"plan": made(metal_cache_url=CACHE, metal_mirrors="china")}},
         "found different origins on gpu01"),
        (lambda hosts: hosts | {"gpu03": {"plan": None, "archives": None, "address": "nowhere"}},
         "found no address of gpu03"),
    ],
)  # fmt: skip
def test_what_stands_against_a_cache_is_one_line(change: Callable[[Any], Any], words: str) -> None:
    problem = cache.decide(change(members()), [], [], resolve)["problem"]
    assert words in problem
    assert "\n" not in problem


def test_a_network_that_is_none_is_named() -> None:
    assert "found 10.0.0.300" in cache.decide(members(), ["10.0.0.300"], [], resolve)["problem"]


def test_an_index_says_where_its_files_lie_in_both_forms() -> None:
    page = json.dumps({"files": [{"url": "https://files.example.org/a.whl"}, {"url": "/own/b.whl"}]})
    url = "https://index.example.org/simple/packaging/"
    assert cache.index_origins(page, url) == ["https://files.example.org", "https://index.example.org"]
    html = '<a href="../../packages/a.whl#sha256=1">a</a> <a href="https://files.example.org/b.whl">b</a>'
    assert cache.index_origins(html, url) == ["https://files.example.org", "https://index.example.org"]
    assert cache.index_origins("<html>no link</html>", url) == []


def test_name_servers_are_written_as_nginx_wants_them() -> None:
    text = "search x\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\n# nameserver 1.2.3.4\n"
    assert cache.name_servers(text) == ["10.0.0.2", "[fe80::1]"]


# -- nginx ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Running:
    url: str
    index: Origin
    files: Origin
    log: Path
    errors: Path
    stop_origins: Callable[[], None]

    def traffic(self) -> dict[str, traffic.Traffic]:
        return traffic.read(self.log.read_text().splitlines())


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Running]:
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with ExitStack() as origins, ExitStack() as stack:
        index, files = origins.enter_context(running(Origin())), origins.enter_context(running(Origin()))
        port = free_port()
        archive = f"{files.url}/debian"
        table = {
            "problem": None,
            "port": port,
            "index": f"{index.url}/simple",
            "python": {"url": f"{files.url}/pythons"},
            "vendor": {"url": f"{files.url}/cuda/repos"},
            "archives": [{"url": archive, "path": archive.replace("://", "/")}],
            "clients": ["127.0.0.1"],
        }
        configuration = tmp_path / "nginx.conf"
        text = render(
            configuration,
            "artefact-cache.conf.j2",
            {},
            __artefact_cache_table=table,
            __artefact_cache_files=[files.url],
            __artefact_cache_index_origin=index.url,
            __artefact_cache_files_at=cache.file_places([files.url], f"{index.url}/simple"),
            __artefact_cache_archives_at=cache.archive_places(table),
            __artefact_cache_resolvers=["127.0.0.1"],
            artefact_cache_index_url=f"{index.url}/simple",
            artefact_cache_directory=str(tmp_path / "kept"),
            artefact_cache_size_gigabytes=1,
            artefact_cache_slice_megabytes=1,
            artefact_cache_refresh_minutes=10,
        )
        runtime, log = tmp_path / "run", tmp_path / "access.log"
        runtime.mkdir()
        text = text.replace("/run/minimax-metal-artefacts", str(runtime))
        # Pages count for a second instead of minutes, so that a test can see them get old.
        text = text.replace("proxy_cache_valid 200 10m", "proxy_cache_valid 200 1s")
        text = text.replace("proxy_cache_valid 200 1m", "proxy_cache_valid 200 1s")
        text = text.replace("syslog:server=unix:/dev/log,nohostname,tag=artefacts", str(log))
        assert str(log) in text
        configuration.write_text("user root;\n" + text)
        errors = (tmp_path / "errors").open("w")
        process = subprocess.Popen(
            [nginx, "-e", "stderr", "-c", str(configuration), "-g", "daemon off;"], stderr=errors
        )
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                requests.get(f"{url}/health", timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None, (tmp_path / "errors").read_text()
                time.sleep(0.05)
        yield Running(url, index, files, log, tmp_path / "errors", origins.close)


def wheel(proxy: Running, size: int = 3_500_000) -> tuple[str, bytes]:
    content = bytes(range(251)) * (size // 251)
    proxy.files.files["/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl"] = content
    link = f"{proxy.files.url}/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl"
    proxy.index.files["/simple/big/"] = json.dumps({"files": [{"filename": "big", "url": link}]}).encode()
    return link, content


def test_links_of_a_page_lead_through_the_cache_and_a_file_is_read_once(proxy: Running) -> None:
    _, content = wheel(proxy)
    page = requests.get(f"{proxy.url}/pypi/simple/big/", headers={"Accept": UV}, timeout=10).json()
    link = page["files"][0]["url"]
    place = proxy.files.url.replace("://", "/")
    assert link == f"{proxy.url}/pypi/files/{place}/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: requests.get(link, timeout=30).content, range(6)))
    assert all(answer == content for answer in answers)
    # Every part once, whoever came first, by the very path that the index named.
    assert sorted(one[1] for one in proxy.files.asked) == [
        f"bytes={start}-{start + 2**20 - 1}" for start in (0, 2**20, 2 * 2**20, 3 * 2**20)
    ]
    assert {one[0] for one in proxy.files.asked} == {"/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl"}
    assert proxy.files.sent == len(content)
    part = requests.get(link, headers={"Range": "bytes=2000000-2000009"}, timeout=10)
    assert (part.status_code, part.content) == (206, content[2_000_000:2_000_010])
    assert proxy.files.sent == len(content)
    number, origin, size = traffic.ratio(proxy.traffic(), ".whl")
    assert number == 1
    assert size == len(content)
    assert size < origin < size * 1.01  # with the headers of four answers


def test_strangers_get_nothing_whatever_they_ask_for(proxy: Running) -> None:
    wheel(proxy)
    place = urlsplit(proxy.url)
    for path in ("/health", "/pypi/simple/big/", "/nvidia/debian12/x86_64/Packages"):
        stranger = http.client.HTTPConnection(
            "127.0.0.1", place.port or 0, 10, source_address=("127.0.0.2", 0)
        )
        stranger.request("GET", path)
        assert stranger.getresponse().status == 403, path
        stranger.close()
    assert requests.get(f"{proxy.url}/health", timeout=10).text == "ok\n"
    assert proxy.index.forms == []


def test_each_form_of_a_page_is_kept_for_itself(proxy: Running) -> None:
    link, _ = wheel(proxy)
    for accept in (UV, "text/html", UV, "text/html"):
        requests.get(f"{proxy.url}/pypi/simple/big/", headers={"Accept": accept}, timeout=10)
    assert [form.partition(",")[0] for form in proxy.index.forms] == [JSON, "text/html"]
    html = f'<a href="{link}">x</a><a href="/root/y.whl">y</a><a href="../../packages/z.whl">z</a>'
    proxy.index.files["/simple/html/"] = html.encode()
    proxy.index.files["/root/y.whl"] = b"y"
    proxy.index.files["/packages/z.whl"] = b"z"
    page = requests.get(f"{proxy.url}/pypi/simple/html/", headers={"Accept": "text/html"}, timeout=10).text
    own = proxy.index.url.replace("://", "/")
    assert f'href="{proxy.url}/pypi/files/{own}/root/y.whl"' in page
    assert requests.get(f"{proxy.url}/pypi/files/{own}/root/y.whl", timeout=10).content == b"y"
    # A relative link leads beside the index, through here as well.
    assert requests.get(f"{proxy.url}/pypi/packages/z.whl", timeout=10).content == b"z"


def test_without_an_uplink_it_gives_what_it_has(proxy: Running) -> None:
    _, content = wheel(proxy)
    archive = f"{proxy.url}/apt/{proxy.files.url.replace('://', '/')}/debian"
    proxy.files.files["/debian/dists/x/InRelease"] = b"signed"
    proxy.files.files["/debian/pool/a_1_amd64.deb"] = b"package"
    paths = [
        f"{proxy.url}/pypi/simple/big/",
        f"{proxy.url}/pypi/files/{proxy.files.url.replace('://', '/')}"
        "/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl",
        f"{archive}/dists/x/InRelease",
        f"{archive}/pool/a_1_amd64.deb",
    ]
    before = [requests.get(path, timeout=30).content for path in paths]
    assert before[1:] == [content, b"signed", b"package"]
    proxy.stop_origins()
    time.sleep(2.2)  # pages and lists are past their time now
    assert [requests.get(path, timeout=30).content for path in paths] == before
    assert requests.get(f"{proxy.url}/pypi/simple/never-asked-for/", timeout=30).status_code == 502


def test_a_changed_list_is_seen_and_packages_stay(proxy: Running) -> None:
    archive = f"{proxy.url}/apt/{proxy.files.url.replace('://', '/')}/debian"
    proxy.files.files["/debian/dists/x/InRelease"] = b"old"
    assert requests.get(f"{archive}/dists/x/InRelease", timeout=10).content == b"old"
    proxy.files.files["/debian/dists/x/InRelease"] = b"new"
    time.sleep(2.2)
    assert requests.get(f"{archive}/dists/x/InRelease", timeout=10).content == b"new"


def test_where_an_origin_sends_elsewhere_the_cache_goes(proxy: Running) -> None:
    name = "/pythons/20261110/cpython-3.12.16%2B20261110-x86_64.tar.gz"
    proxy.files.files[name] = f"{proxy.files.url}/storage/one"
    proxy.files.files["/storage/one"] = f"{proxy.files.url}/storage/two"
    proxy.files.files["/storage/two"] = b"python"
    asked = f"{proxy.url}/python/20261110/cpython-3.12.16%2B20261110-x86_64.tar.gz"
    assert [requests.get(asked, timeout=10).content for _ in range(3)] == [b"python"] * 3
    assert [path for path, _ in proxy.files.asked] == [name, "/storage/one", "/storage/two"]


def test_nobody_is_led_to_other_places(proxy: Running) -> None:
    other = proxy.files.url.replace("127.0.0.1", "localhost").replace("://", "/")
    proxy.files.files["/secret.whl"] = b"secret"
    proxy.files.files["/secret"] = b"secret"
    mine = proxy.files.url.replace("://", "/")
    for path in (
        f"/pypi/files/{other}/secret.whl",
        f"/apt/{mine}/secret",
        f"/apt/{mine}/debian/../secret",
        f"/pypi/files/http/example.org/../{mine.removeprefix('http/')}/../x",
        "/",
    ):
        prepared = requests.Request("GET", proxy.url).prepare()
        prepared.url = proxy.url + path
        with requests.Session() as session:
            answer = session.send(prepared, timeout=10, allow_redirects=False)
        assert answer.content != b"secret", path
        assert answer.status_code in {400, 403, 404}, path
    assert requests.post(f"{proxy.url}/pypi/simple/big/", timeout=10).status_code == 405


def test_an_origin_sends_the_cache_to_named_origins_only(proxy: Running, tmp_path: Path) -> None:
    """Not to an internal address, not to a socket of its host, not to another name of a named server."""
    with running(Origin()) as inside:
        inside.files["/latest/meta-data"] = b"secret"
        port = urlsplit(inside.url).port
        named = urlsplit(proxy.files.url).netloc
        unnamed = (
            f"{inside.url}/latest/meta-data",
            f"http://localhost:{port}/latest/meta-data",
            f"http://{named}@127.0.0.1:{port}/latest/meta-data",
            f"http://127.0.0.1:{port}/latest/meta-data#http://{named}/",
            f"http://127.0.0.1:{port}/latest/meta-data?http://{named}/",
            f"http://{named}.127.0.0.1.nip.io:{port}/latest/meta-data",
            f"//127.0.0.1:{port}/latest/meta-data",
            "http://unix:/var/run/docker.sock:/containers/json",
            "http://169.254.169.254/latest/meta-data",
            "file:///etc/passwd",
            "ftp://127.0.0.1/x",
            "",
        )
        place = proxy.files.url.replace("://", "/")
        for number, target in enumerate(unnamed):
            for path, asked in (
                (f"/pythons/{number}.tar.gz", f"/python/{number}.tar.gz"),
                (f"/packages/{number}.whl", f"/pypi/files/{place}/packages/{number}.whl"),
                (f"/debian/pool/{number}.deb", f"/apt/{place}/debian/pool/{number}.deb"),
                (f"/debian/dists/{number}", f"/apt/{place}/debian/dists/{number}"),
                (f"/cuda/repos/{number}", f"/nvidia/{number}"),
            ):
                proxy.files.files[path] = target
                answer = requests.get(proxy.url + asked, timeout=10, allow_redirects=False)
                assert (answer.status_code, b"secret" in answer.content) == (502, False), (target, asked)
            # Nor at the second step.
            proxy.files.files[f"/pythons/first{number}"] = f"{proxy.files.url}/pythons/{number}.tar.gz"
            again = requests.get(f"{proxy.url}/python/first{number}", timeout=10, allow_redirects=False)
            assert again.status_code == 502
            proxy.index.files[f"/simple/p{number}/"] = target
            page = requests.get(f"{proxy.url}/pypi/simple/p{number}/", timeout=10, allow_redirects=False)
            assert page.status_code == 502
        assert inside.asked == []
        assert inside.forms == []


def test_an_origin_may_send_the_cache_to_its_own_paths(proxy: Running) -> None:
    proxy.index.files["/simple/some-package/"] = b"<a>page</a>"
    proxy.index.files["/simple/Some_Package/"] = "/simple/some-package/"
    page = requests.get(f"{proxy.url}/pypi/simple/Some_Package/", headers={"Accept": "text/html"}, timeout=10)
    assert page.text == "<a>page</a>"


def test_what_is_wrong_is_fetched_anew_when_somebody_says_so(proxy: Running) -> None:
    _, content = wheel(proxy, 300_000)
    path = "/packages/a/b/big-1.0%2Bcu13-py3-none-any.whl"
    asked = f"{proxy.url}/pypi/files/{proxy.files.url.replace('://', '/')}{path}"
    proxy.files.files[path] = b"wrong" * 60_000
    assert requests.get(asked, timeout=10).content == b"wrong" * 60_000
    proxy.files.files[path] = content
    assert requests.get(asked, timeout=10).content == b"wrong" * 60_000
    assert requests.get(asked, headers={"X-Metal-Fresh": "1"}, timeout=10).content == content
    assert requests.get(asked, timeout=10).content == content


def test_nothing_is_kept_for_years(proxy: Running, tmp_path: Path) -> None:
    text = (tmp_path / "nginx.conf").read_text()
    assert "3650d" not in text
    assert "proxy_cache_valid 200 206 30d;" in text


HOSTILE = (
    'https://e.example.org";} server{listen 1;location/{root /;}} #',
    "https://e.example.org;proxy_pass http://unix:/x",
    "https://e.example.org\nx y;",
    "https://user:secret@e.example.org",
    "https://$host",
    "https://e.example.org{",
    "https://e.example.org'x",
    "javascript:alert(1)",
    "http://",
)


@pytest.mark.parametrize("url", HOSTILE)
def test_nobodys_words_end_a_line_of_nginx(url: str) -> None:
    page = json.dumps({"files": [{"url": f"{url}/a.whl"}, {"url": "https://files.example.org/b.whl"}]})
    found = cache.index_origins(page, "https://index.example.org/simple/packaging/")
    assert [one for one in found if set(one) & set("\"'{};$\n @#")] == []
    assert "https://files.example.org" in found
    assert cache.decide(members(), [], [url], resolve)["problem"] is not None
    given = {
        "index_url": "https://i.example.org/simple",
        "directory": "/var/cache/x",
        "resolvers": [],
        "redirects": [],
    }
    assert cache.settings_problem(given) is None
    for change in ({"index_url": url}, {"redirects": [url]}, {"directory": url}, {"resolvers": [url]}):
        problem = cache.settings_problem(given | change)
        assert problem is not None
        assert "\n" not in problem
    assert cache.name_servers(f"nameserver {url}\nnameserver 10.0.0.2\n") == ["10.0.0.2"]


def test_an_index_does_not_lead_the_cache_into_its_own_network() -> None:
    links = ["http://169.254.169.254/x.whl", "https://10.0.0.1/x.whl", "https://localhost/x.whl", "https://vault/x.whl",
             "http://files.example.org/x.whl", "https://[::1]/x.whl", "https://x.internal/x.whl"]  # fmt: skip
    page = json.dumps({"files": [{"url": link} for link in links]})
    assert cache.index_origins(page, "https://index.example.org/simple/packaging/") == []
    own = json.dumps({"files": [{"url": "http://10.0.0.9:8081/x.whl"}, {"url": "/x.whl"}]})
    assert cache.index_origins(own, "http://10.0.0.9:8081/simple/packaging/") == ["http://10.0.0.9:8081"]
    assert cache.index_origins(own, "http://10.0.0.8/simple/packaging/") == [
        "http://10.0.0.8",
        "http://10.0.0.9:8081",
    ]


def test_the_unit_is_kept_in(tmp_path: Path) -> None:
    unit = tmp_path / "artefacts.service"
    render(unit, "artefact-cache.service.j2", {}, __artefact_cache_configuration="/etc/x.conf",
           artefact_cache_directory="/var/cache/x")  # fmt: skip
    text = unit.read_text()
    assert "ReadWritePaths=" in text
    assert "MemoryMax=" in text
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)],
        check=False,
        capture_output=True,
        text=True,
    )
    level = float(done.stdout.rsplit(":", 1)[1].split()[0])
    assert level <= 4.0, done.stdout
