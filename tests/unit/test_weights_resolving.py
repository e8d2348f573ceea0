"""A model's files are resolved once and recorded on the controller; the fleet's secret is renewed."""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle_store import signature
from minimax_metal.controller.bundle_store.store import SIGNATURE
from minimax_metal.controller.statements import bundled
from minimax_metal.controller.statements.resolving import resolve
from minimax_metal.controller.statements.wishes import Wish, store_directory, wish_of
from minimax_metal.host.weights import commands, follow
from minimax_metal.host.weights.asking import for_fleet
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.follow import UnitState
from minimax_metal.host.weights.manifest import Entry
from minimax_metal.host.weights.proof import HUB, Proof
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.share.renewal import BOTH_SECONDS, DROP, RENEW, renewed
from tests.support.hub import model

COMMIT, OTHER = "c" * 40, "d" * 40
HUGGING = "https://huggingface.co"
FILES = (Entry("config.json", 3, git_oid="1" * 40), Entry("m.safetensors", 9, "2" * 64, stated=True))
MIRROR = Source("hf-mirror", "A/B", COMMIT, "https://hf-mirror.com")
OWN = Source("huggingface", "A/B", COMMIT, "http://artifactory.example/hf")
SCOPE = Source("modelscope", "a/b", "master", "https://www.modelscope.cn")
DISK = Source("directory", path=Path("/mnt/model"))


class Asked:
    """Answers by endpoint; requests are recorded."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, source: Source) -> Proof:
        where = str(source.endpoint)
        self.asked.append(where)
        for word, answer in self.answers.items():
            if word in where:
                if isinstance(answer, Exception):
                    raise answer
                by = "hub" if where in {HUGGING, "https://www.modelscope.cn"} else "mirror"
                revision = source.revision if source.revision != "main" else COMMIT
                files = answer if isinstance(answer, tuple) else FILES
                return Proof(
                    by, where, "controller", "2026-11-29T00:00:00Z", files, source.repository, revision
                )
        raise SourceError(f"{where}: Connection refused")


def wish(*sources: Source, **more: Any) -> Wish:
    return Wish("A/B", COMMIT, sources, **more)


def test_the_hub_is_asked_once_and_what_it_said_is_kept(tmp_path: Path) -> None:
    ask = Asked(huggingface=1)
    for _ in range(3):
        found = resolve(wish(MIRROR, SCOPE), tmp_path / "s", ask=ask)
        assert found.proof is not None
        assert (found.proof.by, found.proof.origin) == (HUB, HUGGING)
        assert found.warnings == []
    assert ask.asked == [HUGGING]
    (file,) = (tmp_path / "s").glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_where_the_controller_has_no_way_a_host_asks_the_hub(tmp_path: Path) -> None:
    ask = Asked(mirror=1, scope=1)
    proof = Proof(HUB, HUGGING, "gpu01", "2026-11-29T00:00:00Z", FILES, "A/B", COMMIT)
    found = resolve(wish(MIRROR), tmp_path, ask=ask, elsewhere=lambda: proof)
    assert found.proof == proof
    assert "https://hf-mirror.com" not in ask.asked, "a mirror counts less than the hub, from wherever"
    assert "resolved by gpu01" in str(found.proof)


def test_a_mirror_speaks_for_itself_and_is_recorded_so(tmp_path: Path) -> None:
    ask = Asked(mirror=1)
    found = resolve(wish(MIRROR), tmp_path, ask=ask)
    assert found.proof is not None
    assert str(found.proof).startswith("mirror's own list (https://hf-mirror.com)")
    assert len(found.warnings) == 1
    assert "only the mirror itself lists" in found.warnings[0]
    assert resolve(wish(MIRROR), tmp_path, ask=ask).warnings == found.warnings, "said in every run"
    assert ask.asked == [HUGGING, "https://hf-mirror.com"]
    # A mirror that the user does not name any more has no say.
    later = resolve(wish(replace(MIRROR, endpoint="https://other.example")), tmp_path, ask=Asked(other=1))
    assert later.proof is not None
    assert later.proof.origin == "https://other.example"


def test_who_has_a_mirror_of_their_own_is_not_sent_to_the_public_hub(tmp_path: Path) -> None:
    ask = Asked(artifactory=1)
    resolve(wish(OWN, DISK), tmp_path, ask=ask)
    assert ask.asked == ["http://artifactory.example/hf"]
    nothing = Asked()
    found = resolve(wish(DISK), tmp_path / "2", ask=nothing)
    assert found.proof is None
    assert found.warnings == []
    assert nothing.asked == []


def test_what_modelscope_says_of_its_master_is_not_called_the_commit(tmp_path: Path) -> None:
    found = resolve(wish(SCOPE), tmp_path, ask=Asked(scope=1))
    assert found.proof is not None
    assert found.proof.origin == "https://www.modelscope.cn"
    assert "nothing shows that these are the files of" in found.warnings[0]


def test_without_anybody_outside_it_is_said_and_not_kept(tmp_path: Path) -> None:
    found = resolve(wish(MIRROR), tmp_path, ask=Asked())
    assert found.proof is None
    assert "no source outside the fleet could list" in found.warnings[0]
    assert "Connection refused" in found.warnings[0]
    assert "model_weights_manifest" in found.warnings[0]
    assert list(tmp_path.glob("*.json")) == []


def test_where_the_first_host_has_no_way_either_two_more_try(tmp_path: Path) -> None:
    proof = Proof(HUB, HUGGING, "gpu03", "2026-11-29T00:00:00Z", FILES, "A/B", COMMIT)
    tried: list[int] = []

    def host(number: int, answer: Proof | None) -> Proof | None:
        tried.append(number)
        return answer

    ask = Asked()
    for number in (1, 2):
        assert resolve(wish(MIRROR), tmp_path, ask=ask, elsewhere=partial(host, number, None)).proof is None
    found = resolve(wish(MIRROR), tmp_path, ask=ask, elsewhere=lambda: host(3, proof))
    assert found.proof == proof
    assert tried == [1, 2, 3]
    assert len(ask.asked) == 2, "the controller waited once"
    for number in range(6):
        resolve(wish(MIRROR), tmp_path / "2", ask=ask, elsewhere=partial(host, number, None))
    assert len(tried) == 6


def test_of_many_hosts_one_waits_for_sources_that_do_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asked()
    lines = [resolve(wish(MIRROR), tmp_path, ask=ask).warnings for _ in range(8)]
    assert len(ask.asked) == 2, "the hub and the mirror, once each"
    assert lines == [lines[0]] * 8
    assert resolve(wish(MIRROR, again=True), tmp_path, ask=Asked(huggingface=1)).proof is not None
    (tmp_path / "2").mkdir()
    resolve(wish(MIRROR), tmp_path / "2", ask=ask)
    assert resolve(wish(OWN), tmp_path / "2", ask=Asked(artifactory=1)).proof is not None, "another wish"
    monkeypatch.setattr("minimax_metal.controller.statements.wishes.RECENT", 0.0)
    (tmp_path / "3").mkdir()
    resolve(wish(MIRROR), tmp_path / "3", ask=ask)
    assert resolve(wish(MIRROR), tmp_path / "3", ask=Asked(mirror=1)).proof is not None, "long ago"


def test_a_statement_without_hashes_is_none_unless_it_is_accepted(tmp_path: Path) -> None:
    bare = (Entry("config.json", 3),)
    found = resolve(wish(MIRROR), tmp_path, ask=Asked(mirror=bare))
    assert found.proof is None
    assert "publishes no hash of 1 files, e.g. config.json" in found.warnings[0]
    taken = resolve(wish(MIRROR, accept_unhashed=True), tmp_path, ask=Asked(mirror=bare))
    assert taken.proof is not None
    assert taken.proof.unhashed == ("config.json",)
    assert any("are accepted" in line for line in taken.warnings)
    assert resolve(wish(MIRROR), tmp_path, ask=Asked()).proof is None, "accepted then, not now"


def test_a_commit_does_not_change(tmp_path: Path) -> None:
    resolve(wish(MIRROR), tmp_path, ask=Asked(huggingface=1))
    other = (FILES[0], replace(FILES[1], sha256="3" * 64))
    with pytest.raises(UserError, match=r"lists different files of A/B.*m\.safetensors: sha256 333333333333"):
        resolve(wish(MIRROR, again=True), tmp_path, ask=Asked(huggingface=other))
    kept = resolve(wish(MIRROR), tmp_path, ask=Asked()).proof
    assert kept is not None
    assert kept.files[1].sha256 == "2" * 64
    assert resolve(wish(MIRROR, again=True), tmp_path, ask=Asked()).proof == kept, "nobody could be asked"


def test_a_branch_is_one_commit_for_all_hosts_and_later_runs(tmp_path: Path) -> None:
    """Before, the file of any one host could define the branch for all."""
    source = Source("huggingface", "A/B", "main", HUGGING)
    branch = Wish("A/B", "main", (source, DISK))
    for ask in (Asked(huggingface=1), Asked()):
        found = resolve(branch, tmp_path, ask=ask)
        assert found.sources == (replace(source, revision=COMMIT, branch="main"), DISK)
        assert "main is a branch; commit" in found.warnings[0]


def test_check_mode_keeps_nothing(tmp_path: Path) -> None:
    found = resolve(wish(MIRROR), tmp_path / "none", ask=Asked(huggingface=1), keep=False)
    assert found.proof is not None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_kept_and_damaged_is_said(content: bytes, tmp_path: Path) -> None:
    resolve(wish(MIRROR), tmp_path, ask=Asked(huggingface=1))
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(content)
    with pytest.raises(UserError, match="remove it, and the hub is asked again"):
        resolve(wish(MIRROR), tmp_path, ask=Asked(huggingface=1))


def test_the_users_manifest_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    source = {"kind": "directory"}
    rows = [{"path": "config.json", "size": 3, "sha256": "4" * 64, "stated": False}]
    file.write_text(json.dumps({"name": "m", "revision": None, "source": source, "files": rows}))
    ask = Asked(huggingface=1)
    found = resolve(wish(MIRROR, manifest=file), tmp_path / "s", ask=ask)
    assert ask.asked == []
    assert found.proof is not None
    assert found.proof.by == "manifest"
    assert found.proof.time == resolve(wish(MIRROR, manifest=file), tmp_path / "s", ask=ask).proof.time  # type: ignore[union-attr]  # there, as above
    file.write_text(
        json.dumps({"name": "m", "revision": None, "source": source, "files": [{**rows[0], "sha256": None}]})
    )
    with pytest.raises(UserError, match="found no hash of 1 files"):
        resolve(wish(MIRROR, manifest=file), tmp_path / "s", ask=ask)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError):
            resolve(wish(MIRROR, manifest=missing), tmp_path / "s", ask=ask)


def test_a_directory_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "model"
    there.mkdir()
    for path, content in model(shards=1, size=1000).items():
        (there / path).parent.mkdir(exist_ok=True)
        (there / path).write_bytes(content)
    assert commands.main(["manifest", str(there)]) == 0
    file = tmp_path / "m.json"
    file.write_text(capsys.readouterr().out)
    found = resolve(wish(DISK, manifest=file), tmp_path / "s", ask=Asked())
    assert found.proof is not None
    assert sorted(entry.path for entry in found.proof.files) == sorted(model(shards=1, size=1000))
    assert found.proof.unhashed == ()
    with pytest.raises(UserError, match="found no directory"):
        commands.main(["manifest", str(tmp_path / "none")])


def test_a_host_asks_for_the_fleet_only_the_publishers_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked(mirror=1, artifactory=1)
    monkeypatch.setattr("minimax_metal.host.weights.asking.ask", lambda source, _resolver: ask(source))
    raw = {"path": "/srv/m/r", "revision": COMMIT, "sources": [OWN.as_dict()]}
    with pytest.raises(UserError, match="mirrors are not asked"):
        for_fleet(Request.parse(raw), "A/B")
    assert ask.asked == []
    with pytest.raises(UserError, match="Connection refused"):
        for_fleet(Request.parse({**raw, "sources": [MIRROR.as_dict()]}), "A/B")
    assert ask.asked == [HUGGING]


def test_a_play_says_what_it_wants(tmp_path: Path) -> None:
    found = wish_of(
        {
            "repository": "A/B",
            "revision": COMMIT,
            "sources": [{"kind": "huggingface", "repository": "A/B", "endpoint": HUGGING, "path": None}],
            "manifest": "",
            "tokens": {"huggingface": "~/token"},
        }
    )
    assert found.manifest is None
    assert found.sources[0].token_file == Path.home() / "token"
    assert store_directory("/a/inventory") != store_directory("/b/inventory")


# A bundle --------------------------------------------------------------------------------------------------


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_bundles_signed_manifest_states_what_its_weights_are(tmp_path: Path) -> None:
    key, foreign = tmp_path / "key", tmp_path / "foreign"
    for one in (key, foreign):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(one)], check=True)
    base = f"weights/A/B/{COMMIT}"
    manifest = {
        "schema": 1,
        "created": "2026-11-29",
        "contents": {},
        "files": [
            {"path": f"{base}/config.json", "size": 3, "sha256": "5" * 64},
            {"path": f"{base}/.minimax-metal/manifest.json", "size": 30, "sha256": "6" * 64},
            {"path": "pypi/x.whl", "size": 30, "sha256": "7" * 64},
        ],
    }
    content = json.dumps(manifest).encode()
    files = {"/manifest.json": content}
    with serving(files) as url:
        source = Source("http", "A/B", COMMIT, f"{url}/{base}")
        signers = tmp_path / "signers"
        assert bundled.served(source, "A/B", COMMIT, signers)[0] is None, "no keys"
        signers.write_text(key.with_suffix(".pub").read_text())
        files[f"/{SIGNATURE}"] = signature.sign(content, foreign)
        proof, why = bundled.served(source, "A/B", COMMIT, signers)
        assert proof is None
        assert "is not signed by a key" in why
        files[f"/{SIGNATURE}"] = signature.sign(content, key)
        proof, _ = bundled.served(source, "A/B", COMMIT, signers)
        assert proof is not None
        assert [(entry.path, entry.sha256) for entry in proof.files] == [("config.json", "5" * 64)]
        assert proof.by == "bundle"
        assert "its signature verified" in str(proof)
        files["/manifest.json"] = content.replace(b"555", b"556")
        assert bundled.served(source, "A/B", COMMIT, signers)[0] is None
    assert bundled.served(Source("http", "A/B", COMMIT, "http://h/x"), "A/B", COMMIT)[0] is None


def test_a_bundle_that_the_user_names_needs_its_signature_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, foreign, disk = tmp_path / "key", tmp_path / "foreign", tmp_path / "disk"
    for one in (key, foreign):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(one)], check=True)
    entry = {"path": f"weights/A/B/{COMMIT}/config.json", "size": 3, "sha256": "5" * 64}
    content = json.dumps({"schema": 1, "created": "now", "contents": {}, "files": [entry]}).encode()
    disk.mkdir()
    (disk / "manifest.json").write_bytes(content)
    monkeypatch.setattr(signature, "SIGNERS", tmp_path / "signers")

    def asked(named: Path) -> Proof | None:
        wish = Wish("A/B", COMMIT, (Source("hf", "A/B", COMMIT),), manifest=named)
        return resolve(wish, tmp_path / "store", ask=lambda _: pytest.fail("asked a source")).proof

    # By its directory or by its file, without keys, without a signature, with another's, after a change.
    for named in (disk, disk / "manifest.json"):
        (disk / "manifest.json.sig").unlink(missing_ok=True)
        with pytest.raises(
            UserError, match=r"found no signature on .*manifest.json, expected one by a key of"
        ):
            asked(named)
        (tmp_path / "signers").write_text(key.with_suffix(".pub").read_text())
        (disk / "manifest.json.sig").write_bytes(signature.sign(content, foreign))
        with pytest.raises(UserError, match="a signature by none of the known keys"):
            asked(named)
        (disk / "manifest.json.sig").write_bytes(signature.sign(content, key))
        proof = asked(named)
        assert proof is not None
        assert (proof.by, proof.files[0].sha256) == ("bundle", "5" * 64)
        (disk / "manifest.json").write_bytes(content.replace(b"555", b"556"))
        with pytest.raises(UserError, match="none of the known keys"):
            asked(named)
        (disk / "manifest.json").write_bytes(content)
        (tmp_path / "signers").unlink()


# The secret ------------------------------------------------------------------------------------------------

ONE, TWO, NEW = "1a5d" * 16, "2b6e" * 16, "3c7f" * 16
NOW = 1_800_000_000.0


def slurped(secret: str | None, note: Any = None) -> list[dict[str, Any]]:
    def one(text: str | None) -> dict[str, Any]:
        return {"failed": True} if text is None else {"content": base64.b64encode(text.encode()).decode()}

    return [one(secret), one(None if note is None else json.dumps(note))]


def run_of(*rows: tuple[str, Any]) -> list[dict[str, Any]]:
    found = [{"inventory_hostname": n, "__model_weights_secret_found": {"results": r}} for n, r in rows]
    return [*found, {"inventory_hostname": "with another model"}]


def note(generation: int, *holders: str, since: float = 0.0) -> dict[str, Any]:
    return {"generation": generation, "holders": list(holders), "renewed": since}


def test_the_first_run_makes_a_secret_and_later_ones_keep_it() -> None:
    first = renewed(run_of(("a", slurped(None)), ("b", slurped(None))), ["a", "b"], NEW, NOW)
    assert first["secret"] == f"{NEW}\n"
    kept = json.loads(first["note"])
    again = renewed(
        run_of(*((name, slurped(first["secret"], kept)) for name in "ab")), ["a", "b"], TWO, NOW + 5
    )
    assert again == first
    # A host that comes later gets the same.
    joined = renewed(
        run_of(("a", slurped(first["secret"], kept)), ("c", slurped(None))), ["a", "b", "c"], TWO, NOW
    )
    assert joined["secret"] == f"{NEW}\n"
    assert json.loads(joined["note"])["holders"] == ["a", "b", "c"]


def test_a_host_that_left_takes_no_valid_secret_along() -> None:
    rows = [
        ("a", slurped(f"{ONE}\n", note(1, "a", "b", "gone"))),
        ("b", slurped(f"{ONE}\n", note(1, "a", "b"))),
    ]
    found = renewed(run_of(*rows), ["a", "b"], NEW, NOW)
    assert found["secret"] == f"{NEW}\n{ONE}\n", "both are valid for the pulls that are at work"
    assert found["left"] == ["gone"]
    kept = json.loads(found["note"])
    assert kept == {"generation": 2, "holders": ["a", "b"], "renewed": NOW}
    rows = [(name, slurped(found["secret"], kept)) for name in "ab"]
    assert renewed(run_of(*rows), ["a", "b"], TWO, NOW + 60)["secret"] == found["secret"]
    assert renewed(run_of(*rows), ["a", "b"], TWO, NOW + BOTH_SECONDS + 1)["secret"] == f"{NEW}\n"
    # A clock that jumps back is no reason to keep the old one for years.
    assert renewed(run_of(*rows), ["a", "b"], TWO, NOW - 1000)["secret"] == f"{NEW}\n"


def test_an_operator_renews_the_secret_and_ends_the_day_of_the_one_before() -> None:
    rows = [(name, slurped(f"{ONE}\n", note(3, "a", "b"))) for name in "ab"]
    found = renewed(run_of(*rows), ["a", "b"], NEW, NOW, RENEW)
    assert found["secret"] == f"{NEW}\n{ONE}\n"
    kept = json.loads(found["note"])
    assert kept == {"generation": 4, "holders": ["a", "b"], "renewed": NOW}
    rows = [(name, slurped(found["secret"], kept)) for name in "ab"]
    assert renewed(run_of(*rows), ["a", "b"], TWO, NOW + 9, DROP)["secret"] == f"{NEW}\n"
    # Together with a host that left: not even the one that it was given stays.
    assert renewed(run_of(*rows), ["a"], TWO, NOW + 9, DROP)["secret"] == f"{NEW}\n", "b is in the run"
    assert renewed(run_of(rows[0]), ["a"], TWO, NOW + 9, DROP)["secret"] == f"{TWO}\n"


def test_a_run_of_some_hosts_renews_nothing() -> None:
    rows = [("a", slurped(f"{ONE}\n", note(1, "a", "b", "c")))]
    assert renewed(run_of(*rows), ["a", "b", "c"], NEW, NOW)["secret"] == f"{ONE}\n"


def test_the_newest_secret_counts_whoever_has_it() -> None:
    rows = [
        ("a", slurped(f"{ONE}\n", note(1, "a", "b"))),
        ("b", slurped(f"{TWO}\n{ONE}\n", note(2, "b", since=NOW))),
    ]
    found = renewed(run_of(*rows), ["a", "b"], NEW, NOW + 1)
    assert found["secret"] == f"{TWO}\n{ONE}\n"
    assert json.loads(found["note"])["holders"] == ["a", "b"]


@pytest.mark.parametrize(
    "results",
    [
        None,
        [],
        [3],
        [{"content": 3}],
        [{"content": "!"}],
        slurped("short"),
        slurped(ONE, []),
        slurped(ONE, {"generation": "x", "holders": 3, "renewed": []}),
    ],
)
def test_what_a_host_holds_else_is_survived(results: Any) -> None:
    found = renewed(run_of(("a", results)), ["a"], NEW, NOW)
    assert found["secret"].split()[0] in {NEW, ONE}


# A unit that failed earlier --------------------------------------------------------------------------------


def test_a_pull_that_recovered_leaves_no_failed_unit() -> None:
    states = iter(["failed", "inactive"])
    ran: list[list[str]] = []
    ask: Callable[[str], UnitState] = lambda _: UnitState("loaded", next(states))  # noqa: E731  two lines of a test
    assert follow.forget_failure("metal-weights@m.service", ask, ran.append)
    assert ran == [["systemctl", "reset-failed", "metal-weights@m.service"]]
    assert not follow.forget_failure("u", lambda _: UnitState("loaded", "inactive"), ran.append)
    assert len(ran) == 1
