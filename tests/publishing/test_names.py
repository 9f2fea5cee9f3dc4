"""Names that others gave to classes and data are text wherever they are shown: card, tables, pictures."""

from __future__ import annotations

import dataclasses
import html
import json
from html.parser import HTMLParser

import markdown
import numpy as np
import pytest

from hf_fst.commands import outcome
from hf_fst.drawing import overlays, plots
from hf_fst.drawing.tables import text_table
from hf_fst.errors import printable
from hf_fst.publishing import card
from tests.publishing.conftest import REAL, make_facts

HOSTILE = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "a|b\n\n# Free weights\n![](https://example.org/x.png)": "a|b # Free weights ![](https://example.org/x.png)",
    "[car](javascript:x) `*s*` &lt;\x1b[2J": "[car](javascript:x) `*s*` &lt;\\x1b[2J",
}


class Page(HTMLParser):
    """Tags, headings and all text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(markdown.markdown(text, extensions=["tables", "fenced_code"]))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs).get("href") or dict(attrs).get("src")))

    def handle_data(self, data):
        self.text += data


def body(directory) -> str:
    return (directory / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2]


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items())
def test_a_hostile_name_adds_nothing_but_text_to_the_card(tmp_path, name, shown):
    pages = []
    for given in ("car", name):
        data = dataclasses.replace(REAL, title=given, note=given, license=given, config=given)
        evaluations = [dataclasses.replace(e, dataset=data) for e in make_facts().evaluations]
        facts = make_facts(classes=["road", given, "sky"], labeled=data, evaluations=evaluations)
        card.write_card(tmp_path, facts)
        pages.append(Page(body(tmp_path)))
    plain, hostile = pages
    assert hostile.tags == plain.tags
    assert hostile.text.count(shown) >= 8 and "\x1b" not in body(tmp_path)


def test_the_card_of_a_model_that_somebody_else_saved_is_safe_too(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(HOSTILE)}
    config["architectures"] = ["<b>Net</b>"]
    (model_folder / "config.json").write_text(json.dumps(config))
    text = str(card.bare_card(model_folder, "alice/net"))
    assert not {"script", "b", "img", "h1"} & {tag for tag, _ in Page(text.partition("\n---\n")[2]).tags[1:]}
    assert all(shown in html.unescape(text) for shown in HOSTILE.values())


def test_what_cannot_be_printed_becomes_an_escape():
    assert printable("Stra\u00dfe \u6c34 \U0001f697\n\tab") == "Stra\u00dfe \u6c34 \U0001f697\n\tab"
    assert printable("a\x1b[1m\x07\r\x9b\u202eb\udcff") == "a\\x1b[1m\\x07\\r\\x9b\\u202eb\\udcff"


def test_tables_sentences_and_warnings_reach_the_terminal_as_text(capsys):
    assert "\x1b" not in text_table(["class", "IoU"], [["sky\x1b[2J", "1"], ["road", "2"]])
    outcome.say("There is no class 'sky\x1b[2J'.")
    assert capsys.readouterr().err == "hf-fst: There is no class 'sky\\x1b[2J'.\n"
    assert "\\x1b[2J" in outcome.plain_warning("sky\x1b[2J", UserWarning, "file.py", 1)
    assert outcome.plain_warning("sky\x1b[2J", UserWarning, outcome.__file__, 1) == "hf-fst: Warning: sky\\x1b[2J\n"


def test_pictures_take_names_with_line_breaks_and_dollars(tmp_path):
    names = ["sky $x^$ \\frac{", "road\nside", "car\x1b"]
    image, labels = np.zeros((40, 60, 3), np.uint8), np.arange(2400).reshape(40, 60) % 3
    strip = overlays.with_legend(image, names, overlays.default_palette(3))
    assert strip.shape[0] > 40
    overlays.grid([(image, labels, labels, labels)], names, overlays.default_palette(3))
    plots.class_bars([0.1, 0.2, 0.3], None, names, tmp_path / "bars.png", title="on $data$")
    plots.sampling_bars([0.1, 0.2, 0.7], [0.2, 0.3, 0.5], names, tmp_path / "sampling.png")
    assert all((tmp_path / name).stat().st_size for name in ("bars.png", "sampling.png"))
