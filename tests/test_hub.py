"""A Hub that does not answer, breaks off, or sends from door to door costs seconds and one sentence."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants

from hf_fst import hub as ours
from hf_fst.data import load as load_data
from hf_fst.errors import RunError, UserError
from hf_fst.hub import asked_once, hub, silence
from hf_fst.models import build
from hf_fst.models.loading import load_network
from hf_fst.prediction.sources import open_source
from hf_fst.publishing.push import failures_as_sentences
from tests.models.tiny import TINY

STOPS = {"stops": 0, "stops within": 1}  # the bytes of an answer that come


class Bad(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do(self):
        way, _, later = self.server.mode.partition(" later")
        if later and self.path.endswith("/alice/none-such/resolve/main/config.json"):  # the first that is asked for
            way = "has nothing"
        if way == "hangs":
            self.close_connection = True
            return self.server.ends.wait(100)
        if way == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if way in STOPS:
            return self.stop(STOPS[way])
        turns = way == "turns"
        self.send_response(302 if turns else 503 if way == "fails" else 404)
        self.send_header("Content-Length", "0")
        if turns:
            self.send_header("Location", self.path)
        self.end_headers()

    def stop(self, sent):
        """Announces 5 bytes and stops after `sent` of them."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        for name, value in {"Content-Length": 5, "ETag": '"1"', "X-Repo-Commit": "0" * 40}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{"[:sent])
            self.wfile.flush()
            self.close_connection = True
            self.server.ends.wait(100)

    do_GET = do_HEAD = do_POST = do

    def log_message(self, *arguments):
        pass


@pytest.fixture
def bad_hub(request, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bad)
    server.mode, server.daemon_threads, server.ends = request.param, True, threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module, name in (
        (ours, "PATIENCE"),
        (ours, "READING"),
        (ours, "WRITING"),
        (constants, "HF_HUB_DOWNLOAD_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, 0.5)
    if request.param == "refuses":
        server.shutdown()
        server.server_close()
    if request.param == "resets later":  # the client then tries again, with pauses of its own
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield request.param
    server.ends.set()
    if request.param != "refuses":
        server.shutdown()
        server.server_close()


def make_place(name):
    with failures_as_sentences(f"{name} was not made", "then try again"):
        HfApi().create_repo(name, token="hf_none")


REACHING = {
    "a model": lambda: load_network("alice/none-such"),
    "a backbone of transformers": lambda: build("daformer-mit-b0", 3, "alice/none-such", **TINY["daformer-mit-b0"]),
    "a backbone of timm": lambda: build("deeplabv2-resnet50", 3, "alice/none-such", **TINY["deeplabv2-resnet50"]),
    "a dataset": lambda: load_data("hub", "alice/none-such"),
    "a streamed dataset": lambda: open_source("alice/none-such"),
    "a place to publish": lambda: make_place("alice/none-such"),
}


@pytest.mark.parametrize(
    ("bad_hub", "what"),
    [
        *(("refuses", what) for what in REACHING),
        *((way, "a model") for way in ("resets", "fails", "resets later", "turns", "hangs", "hangs later")),
        *((way, what) for way in ("stops", "stops within", "stops later") for what in REACHING),
        ("hangs", "a dataset"),
        ("hangs later", "a backbone of timm"),
    ],
    indirect=["bad_hub"],
)
def test_whatever_is_wrong_with_the_hub_is_a_sentence_within_seconds(bad_hub, what):
    started = time.perf_counter()
    with pytest.raises(UserError) as error:
        REACHING[what]()
    assert time.perf_counter() - started < 12  # the client by itself takes a minute and more
    sentence = str(error.value)
    assert "alice/none-such" in sentence and "\n" not in sentence
    if bad_hub in ("refuses", "resets", "fails"):
        assert re.search("the Hub (at http://127.0.0.1:.*)?does not answer|the connection broke", sentence)
    assert constants.HF_HUB_OFFLINE is False


def test_where_the_hub_is_silent_only_what_was_downloaded_is_looked_at(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "no address")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert silence("alice/model")
    with asked_once("alice/model"):
        assert constants.HF_HUB_OFFLINE
    with asked_once(tmp_path) as fault:  # nothing is asked
        assert fault is None and not constants.HF_HUB_OFFLINE
    with hub("alice/model"):  # it was downloaded
        pass
    with pytest.raises(KeyError), hub("alice/model"):
        raise KeyError("a fault of ours")
    assert not constants.HF_HUB_OFFLINE


def test_offline_by_wish_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="does not answer \\(HF_HUB_OFFLINE is set\\)"), hub("alice/model"):
        raise FileNotFoundError("not in the cache")
    assert constants.HF_HUB_OFFLINE
