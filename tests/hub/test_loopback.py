"""The loopback Hub against huggingface_hub itself, so that its bugs are not taken for ours."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest


MIB = 1024 * 1024
LARGE = hashlib.shake_128(b"a").digest(25 * MIB)  # no two parts alike


def test_a_repository_from_creation_to_deletion(hub, client):
    found = client(
        hub,
        """
from pathlib import Path
from huggingface_hub import HfApi, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
api = HfApi()
assert api.whoami()["name"] == "owner"
assert api.create_repo("owner/m").repo_id == "owner/m"
assert api.create_repo("m", exist_ok=True).repo_id == "owner/m"
assert "409" in failure(lambda: api.create_repo("owner/m"))["says"]
Path("sub/deep").mkdir(parents=True)
Path("README.md").write_text("---\\nlicense: mit\\n---\\n# m\\n")
Path("sub/deep/weights.bin").write_bytes(b"weights")
Path("empty.bin").write_bytes(b"")
first = api.upload_folder(repo_id="owner/m", folder_path=".")
again = api.upload_folder(repo_id="owner/m", folder_path=".")
assert again.oid == first.oid, "nothing changed, yet there is a new commit"
api.create_branch("owner/m", branch="dev/x", revision="main")
api.create_tag("owner/m", tag="v1", revision="main")
api.create_commit("owner/m", [
    CommitOperationCopy("sub/deep/weights.bin", "copy.bin"), CommitOperationDelete("empty.bin"),
    CommitOperationAdd("a.txt", b"a"),
], commit_message="On the branch", revision="dev/x")
stale = lambda: api.create_commit(
    "owner/m", [CommitOperationAdd("b.txt", b"b")], commit_message="late", revision="dev/x", parent_commit=first.oid)
pull = api.create_commit("owner/m", [CommitOperationAdd("c.txt", b"c")], commit_message="please", create_pr=True)
refs = api.list_repo_refs("owner/m")
paths = lambda **more: [entry.path for entry in api.list_repo_tree("owner/m", **more)]
large = api.get_paths_info("owner/m", ["sub/deep/weights.bin", "unknown"], expand=True)
folder = lambda revision: Path(api.snapshot_download("owner/m", revision=revision))
say({
    "files": api.list_repo_files("owner/m"), "dev": api.list_repo_files("owner/m", revision="dev/x"),
    "stale": failure(stale), "pull": pull.pr_revision,
    "refs": [[ref.name for ref in refs.branches], [ref.name for ref in refs.tags]],
    "top": paths(), "all": paths(recursive=True), "below": paths(path_in_repo="sub"),
    "missing folder": failure(lambda: paths(path_in_repo="nowhere")),
    "paths": [[entry.path, entry.lfs.sha256, entry.last_commit.title] for entry in large],
    "titles": [commit.title for commit in api.list_repo_commits("owner/m", revision="dev/x")],
    "info": api.model_info("owner/m", files_metadata=True).siblings[-1].lfs.size,
    "copy": (folder("dev/x") / "copy.bin").read_text(), "tagged": (folder("v1") / "README.md").read_text(),
    "sha": Path(api.hf_hub_download("owner/m", "empty.bin", revision=first.oid)).stat().st_size,
    "bad card": failure(lambda: api.upload_file(repo_id="owner/m", path_in_repo="README.md", path_or_fileobj=b"---\\na")),
})
api.delete_tag("owner/m", tag="v1")
api.delete_branch("owner/m", branch="dev/x")
api.update_repo_settings("owner/m", private=True)
assert api.model_info("owner/m").private
assert [ref.name for ref in api.list_repo_refs("owner/m").branches] == ["main"]
api.delete_repo("owner/m")
api.delete_repo("owner/m", missing_ok=True)
""",
    ).value
    assert found["files"] == [".gitattributes", "README.md", "empty.bin", "sub/deep/weights.bin"]
    assert found["dev"] == [".gitattributes", "README.md", "a.txt", "copy.bin", "sub/deep/weights.bin"]
    assert "412" in found["stale"]["says"] and found["pull"] == "refs/pr/1"
    assert found["refs"] == [["main", "dev/x"], ["v1"]]
    assert sorted(found["top"]) == [".gitattributes", "README.md", "empty.bin", "sub"]
    assert set(found["all"]) == {*found["files"], "sub", "sub/deep"} and found["below"] == ["sub/deep"]
    assert "RemoteEntryNotFoundError" in found["missing folder"]["types"]
    assert found["paths"] == [
        ["sub/deep/weights.bin", hashlib.sha256(b"weights").hexdigest(), "Upload folder using huggingface_hub"]
    ]
    assert found["titles"] == ["On the branch", "Upload folder using huggingface_hub", "initial commit"]
    assert found["info"] == 7 and found["copy"] == "weights" and found["sha"] == 0
    assert found["tagged"].startswith("---\nlicense: mit")
    assert found["bad card"]["types"][0] == "ValueError"
    assert not hub.repos
    assert all("authorization" not in request.headers for request in hub.requests if request.port == "cdn")


def test_a_listing_comes_in_pages(hub, client):
    hub.page_size = 3
    hub.add_repo("owner/m", {f"part{index}/x.txt": b"x" for index in range(4)})
    found = client(
        hub,
        "from huggingface_hub import HfApi\nsay([e.path for e in HfApi().list_repo_tree('owner/m', recursive=True)])",
    )
    assert len(found.value) == 9 and len(set(found.value)) == 9
    assert len(hub.asked("GET", "/tree/")) == 3


def test_a_broken_download_goes_on_where_it_stopped(hub, client):
    hub.add_repo("owner/m", {"large.bin": LARGE})
    hub.cut("/model/owner/m/", after_bytes=21 * MIB)
    source = """
from huggingface_hub import hf_hub_download
say(hashlib.sha256(Path(hf_hub_download("owner/m", "large.bin")).read_bytes()).hexdigest())
"""
    assert client(hub, source).value == hashlib.sha256(LARGE).hexdigest()
    first, second = hub.asked("GET", "/model/owner/m/", port="cdn")
    start = int(second.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert "range" not in first.headers and 10 * MIB <= start <= 21 * MIB
    assert second.status == 206 and second.sent == len(LARGE) - start


@pytest.mark.parametrize("asked", ["bytes=2-4", "bytes=7-", "bytes=-3"])
def test_ranges_of_small_and_large_files(hub, asked):
    hub.add_repo("owner/m", {"a.txt": b"0123456789", "a.bin": b"0123456789"})
    expected = {"bytes=2-4": (b"234", "2-4"), "bytes=7-": (b"789", "7-9"), "bytes=-3": (b"789", "7-9")}[asked]
    for name in ("a.txt", "a.bin"):
        request = urllib.request.Request(f"{hub.url}/owner/m/resolve/main/{name}", headers={"Range": asked})
        with urllib.request.urlopen(request) as reply:
            assert reply.status == 206 and reply.headers["Content-Range"] == f"bytes {expected[1]}/10"
            assert reply.read() == expected[0]


def test_a_range_beyond_the_end_is_refused(hub):
    hub.add_repo("owner/m", {"a.txt": b"0123456789"})
    request = urllib.request.Request(f"{hub.url}/owner/m/resolve/main/a.txt", headers={"Range": "bytes=10-"})
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(request)


def test_objects_that_never_came_are_not_committed(hub):
    repo = hub.add_repo("owner/m")
    lines = [
        {"key": "header", "value": {"summary": "lie"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}},
    ]
    request = urllib.request.Request(
        f"{hub.url}/api/models/owner/m/commit/main",
        "\n".join(map(json.dumps, lines)).encode(),
        {"Authorization": "Bearer hf_owner"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert len(repo.commits) == 1


def test_an_object_is_what_its_name_says(hub):
    hub.add_repo("owner/m")
    request = urllib.request.Request(f"{hub.cdn_url}/model/owner/m/{'0' * 64}", b"else", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_datasets_spaces_and_unknown_addresses(hub, client):
    found = client(
        hub,
        """
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
for kind, more in (("dataset", {}), ("space", {"space_sdk": "gradio"})):
    api.create_repo("owner/d", repo_type=kind, **more)
    api.upload_file(repo_id="owner/d", repo_type=kind, path_in_repo="a.txt", path_or_fileobj=kind.encode())
    assert open(hf_hub_download("owner/d", "a.txt", repo_type=kind)).read() == kind
say([failure(lambda: api.model_info("owner/d"))["types"][0], api.dataset_info("owner/d").sha])
""",
    ).value
    assert found == ["RepositoryNotFoundError", hub.repo("owner/d", "dataset").branches["main"]]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.url}/api/anything/else")


def test_evaluate_finds_a_metric_in_its_space(hub, client):
    """It asks for the branch of its own version first; the metric's second file comes along."""
    metric = """
import datasets
import evaluate

from .counting import count_equal


class Hits(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"hits": count_equal(predictions, references)}
"""
    counting = "def count_equal(one, other):\n    return sum(a == b for a, b in zip(one, other))\n"
    hub.add_repo("owner/hits", {"hits.py": metric.encode(), "counting.py": counting.encode()}, kind="space")
    source = """
import evaluate
say(evaluate.load("owner/hits").compute(predictions=[1, 2, 3], references=[1, 5, 3]))
"""
    assert client(hub, source).value == {"hits": 2}
    assert hub.asked("HEAD", r"/spaces/owner/hits/resolve/v[\d.]+/hits.py")[0].status == 404
