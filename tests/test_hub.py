"""A Hub that does not answer, breaks off, or sends from door to door costs seconds and one sentence."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from hf_fst.data import load as load_data
from hf_fst.errors import RunError, UserError
from hf_fst.hub import asked_once, hub, silence
from hf_fst.models import build
from hf_fst.models.loading import load_network
from hf_fst.prediction.sources import open_source
from tests.models.tiny import TINY


class Bad(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do(self):
        if self.server.mode == "hangs" or (self.server.mode == "hangs later" and self.path != "/"):
            self.close_connection = True
            return self.server.ends.wait(100)
        if self.server.mode == "resets" or (self.server.mode == "resets later" and self.path != "/"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        turns = self.server.mode == "turns" and self.path != "/"
        self.send_response(302 if turns else 503 if self.server.mode == "fails" else 404)
        self.send_header("Content-Length", "0")
        if turns:
            self.send_header("Location", self.path)
        self.end_headers()

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


REACHING = {
    "a model": lambda: load_network("alice/none-such"),
    "a backbone of transformers": lambda: build("daformer-mit-b0", 3, "alice/none-such", **TINY["daformer-mit-b0"]),
    "a backbone of timm": lambda: build("deeplabv2-resnet50", 3, "alice/none-such", **TINY["deeplabv2-resnet50"]),
    "a dataset": lambda: load_data("hub", "alice/none-such"),
    "a streamed dataset": lambda: open_source("alice/none-such"),
}


@pytest.mark.parametrize(
    ("bad_hub", "what"),
    [
        *(("refuses", what) for what in REACHING),
        *((way, "a model") for way in ("resets", "fails", "resets later", "turns", "hangs", "hangs later")),
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
        assert re.search("the Hub (at http://127.0.0.1:.*)?does not answer", sentence)
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
