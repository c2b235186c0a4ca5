"""Releases on the Hugging Face Hub, against a stand-in that answers as the Hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import gr2
from gr2.data_pipeline.store.publishing import push as push_shards
from gr2.errors import CheckpointError, ConfigError, DataError, HubError
from gr2.gr_model.act.publishing import push
from gr2.gr_model.model.release import release_folder
from gr2.hub import download, names_repository, upload

COMMIT = "c" * 40


class StandIn(ThreadingHTTPServer):
    """Keeps repositories in memory: name -> path -> content."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refuses = False


class Answers(BaseHTTPRequestHandler):
    """The few answers that fetching and putting files need."""

    server: StandIn

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        """Describe a repository or give a file."""
        path = self.path.split("?")[0]
        for name, files in self.server.repositories.items():
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in files.items()]
                return self._json(tree)
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                body = {"_id": "0", "id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                return self._send(200, json.dumps(body).encode(), Content_Type="application/json")
            if path.startswith(f"/{name}/resolve/"):
                file = path.removeprefix(f"/{name}/resolve/").split("/", 1)[1]
                if file in files:
                    etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                    return self._send(200, files[file], ETag=etag, X_Repo_Commit=COMMIT)
        self._send(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository Not Found")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Make a repository, say how files are to be sent, take a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        host = f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refuses:
            return self._send(403, b"{}", X_Error_Message="no right to write")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            return self._json({"url": f"{host}/{kind}{name}", "name": name, "id": "0"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][line["value"]["path"]] = content
        self._json({"commitUrl": f"{host}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _json(self, body: object) -> None:
        self._send(200, json.dumps(body).encode(), Content_Type="application/json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    from huggingface_hub import constants

    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", host)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", host + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


RESULTS = {
    "controls": {
        "wbc": {
            "scores": {"sequences": {"number": 100, "average_length": 4.5, "interval_95": [4.2, 4.7]}},
            "tasks": {"open_drawer": {"success": 9, "total": 10}},
        }
    },
    "assets": "built-in",
}


def test_a_release_goes_to_the_hub_and_acts_from_there(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    address = push(release="pretrained", to="someone/arm", results=tmp_path / "results.json")
    assert address.endswith("/someone/arm") and address in capsys.readouterr().out
    stored = hub.repositories["someone/arm"]
    assert set(stored) == {"README.md", "config.json", "model.safetensors"}
    card = stored["README.md"].decode()
    assert card.startswith("---\nlibrary_name: gr2\n") and 'gr2.load_policy("someone/arm")' in card
    assert "| wbc | average length of 100 sequences | 4.50 [4.20, 4.70] |" in card and "9 of 10" in card
    stored["notes/private.txt"] = b"no part of a release"
    fetched, shipped = gr2.load_policy("someone/arm"), gr2.load_policy("pretrained")
    assert all(map(torch.equal, fetched.model.state_dict().values(), shipped.model.state_dict().values()))
    folder = release_folder("hf://someone/arm@main")
    assert sorted(file.name for file in folder.rglob("*")) == sorted(["README.md", "config.json", "model.safetensors"])


def test_the_cache_serves_without_the_hub(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    upload({"config.json": b"{}"}, "someone/small", kind="model", private=True, message="first")
    folder = download("someone/small", ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("someone/small", ["config.json"]) == folder
    with pytest.raises(HubError, match="got neither"):
        download("someone/other", ["config.json"])


def test_a_path_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert names_repository("someone/arm") and names_repository("hf://runs/demo") and names_repository("a/b@v1.0")
    assert not any(map(names_repository, ("runs/demo", "./some/arm", "/some", "pretrained", "a/b/c", "f.py:Name")))


def test_shards_go_to_the_hub_without_places_of_this_machine(hub: StandIn, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / "columns").mkdir(parents=True)
    manifest = {"stage": "video_shards", "status": "complete", "parameters": {"source": "/home/me/secret/set"}}
    manifest |= {"counts": {"kept": 3, "dropped": {}}, "examples": {"too_short": [{"source": "/home/me/secret/a"}]}}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for name in ("shard-000000.tar", "shard-000000.dropped.jsonl", ".lock", "columns/start.npy"):
        (shards / name).write_bytes(b"/home/me/secret" if name.endswith("jsonl") else b"x")
    assert push_shards(shards=shards, to="someone/clips").endswith("/datasets/someone/clips/resolve/main")
    stored = hub.repositories["someone/clips"]
    assert set(stored) == {"README.md", "manifest.json", "shard-000000.tar", "columns/start.npy"}
    assert not any(b"secret" in content for content in stored.values())
    assert json.loads(stored["manifest.json"])["parameters"]["source"] == "set"
    (shards / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    with pytest.raises(DataError, match="stopped run"):
        push_shards(shards=shards, to="someone/clips")
    with pytest.raises(DataError, match=r"manifest\.json"):
        push_shards(shards=tmp_path / "none", to="someone/clips")


def test_what_the_hub_refuses_is_one_sentence(hub: StandIn, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"nobody/nothing: expected a folder here or a model repository"):
        gr2.load_policy("nobody/nothing")
    with pytest.raises(HubError, match="expected user/name"):
        push(release="pretrained", to="someone")
    with pytest.raises(ConfigError, match=r"expected results\.json"):
        push(release="pretrained", to="someone/arm", results=tmp_path / "missing.json")
    hub.refuses = True
    with pytest.raises(HubError, match="hf auth login"):
        push(release="pretrained", to="someone/arm")


def test_a_release_that_needs_a_file_of_this_machine_is_not_put_there(hub: StandIn, tmp_path: Path) -> None:
    folder = release_folder("pretrained")
    record = json.loads((folder / "config.json").read_text())
    (tmp_path / "vqgan.ckpt").touch()
    record["provenance"]["tokenizer_source"] = str(tmp_path / "vqgan.ckpt")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps(record))
    (mine / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="goes into the release"):
        push(release=str(mine), to="someone/arm")
    assert not hub.repositories
