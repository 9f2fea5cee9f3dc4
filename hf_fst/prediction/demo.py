"""A page to try a model on: drop an image, see the classes, student against teacher, and how certain the model is."""

from __future__ import annotations

import html
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib import colormaps
from torchvision.transforms.v2.functional import to_pil_image

from hf_fst.data import load
from hf_fst.data.images import decode_pixels
from hf_fst.data.labels import IGNORED
from hf_fst.drawing.overlays import labels_in, overlay
from hf_fst.errors import DataError, RunError
from hf_fst.evaluation.inference import WHOLE, Look
from hf_fst.prediction.files import list_inputs
from hf_fst.prediction.predict import index_image
from hf_fst.prediction.segmenter import Picture, Segmenter, one_by_one_if_it_fails

EXAMPLES = 4
STYLE = """
.legend td {padding: 2px 10px 2px 0; border: none; white-space: nowrap}
.legend .swatch {display: inline-block; width: 1em; height: 1em; border: 1px solid #808080; vertical-align: middle}
.legend .bar {display: inline-block; height: 0.7em; vertical-align: middle}
.legend .number {text-align: right; font-variant-numeric: tabular-nums}
"""


def check_demo_support() -> None:
    """Raises `RunError` where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise RunError('The page is made with Gradio, which is not installed: pip install "hf_fst[demo]".')


class Demo:
    """What the page shows of an image; where a model has a student, the page compares the two.

    Args and raises: see `hf_fst.prediction.segmenter.Segmenter`.
    """

    def __init__(self, model: str | Path, look: Look = WHOLE, trust_remote_code: bool = False):
        options = {"look": look, "trust_remote_code": trust_remote_code}
        self.teacher = Segmenter(model, "teacher", **options)
        try:
            self.student = Segmenter(model, "student", **options)
        except FileNotFoundError:  # a model that was not trained here
            self.student = None
        self.folder = tempfile.TemporaryDirectory(prefix="hf-fst-demo-")
        self.count = 0

    def look(self, path: str | Path) -> dict[str, Any]:
        """What there is to see of an image file.

        Returns:
            `pixels` uint8 (H, W, 3), `maps` (the classes of teacher and student, or of one network alone), `present`
            (the ids in them), `overlay` and `compared` as `draw` gives them, `confidence` uint8 (H, W, 3), `legend` as
            HTML, and `file`, the path of the index PNG.

        Raises `DataError` where the file is no image, or one that the network cannot take.
        """
        picture = self.teacher.read({"path": str(path), "bytes": None})
        classes, confidence = self._run(self.teacher, picture, path)
        maps, agreement = [classes], None
        if self.student is not None:
            maps.append(self._run(self.student, picture, path)[0])
            agreement = (maps[1] == classes).mean()
        present = labels_in(*maps)
        shown, compared = self.draw(picture.pixels, maps, present)
        self.count += 1
        file = Path(self.folder.name, f"{self.count}", f"{Path(path).stem}-classes.png")
        file.parent.mkdir()
        with open(file, "wb") as target:
            index_image(classes, self.teacher.palette)(target)
        colors = colormaps["viridis"](confidence)[..., :3]
        return {
            "pixels": picture.pixels,
            "maps": maps,
            "present": present,
            "overlay": shown,
            "compared": compared,
            "confidence": np.rint(255 * colors).astype(np.uint8),
            "legend": self._legend(classes, confidence, agreement),
            "file": str(file),
        }

    def draw(
        self, pixels: np.ndarray, maps: list[np.ndarray], shown: Sequence[int]
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The colors of some classes over the image, uint8 (H, W, 3), and the two pictures to compare.

        These are student and teacher, or, with a single network, the image and its classes.
        """
        kept = [np.where(np.isin(classes, shown), classes, IGNORED) for classes in maps]
        teacher, *student = [overlay(pixels, classes, self.teacher.palette) for classes in kept]
        return teacher, (student[0] if student else pixels, teacher)

    def _run(self, segmenter: Segmenter, picture: Picture, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
        result = one_by_one_if_it_fails(segmenter.confident_classes, [picture])[0]
        if isinstance(result, Exception):
            raise DataError(f"{Path(path).name} cannot be segmented ({result}).")
        return result

    def _legend(self, classes: np.ndarray, confidence: np.ndarray, agreement: float | None) -> str:
        """The classes that occur, by their shares, with their colors and how certain the model is of them."""
        counts = np.bincount(classes.ravel(), minlength=len(self.teacher.names))
        sums = np.bincount(classes.ravel(), weights=confidence.ravel(), minlength=len(counts))
        rows = []
        for index in np.argsort(-counts, kind="stable"):
            if counts[index]:
                color = "rgb({}, {}, {})".format(*self.teacher.palette[index])
                share, certain = counts[index] / classes.size, sums[index] / counts[index]
                rows.append(
                    f'<tr><td><span class="swatch" style="background: {color}"></span> '
                    f'{html.escape(self.teacher.names[index])}</td><td class="number">{100 * share:.1f} %</td>'
                    f'<td><span class="bar" style="width: {10 * share:.2f}em; background: {color}"></span></td>'
                    f'<td class="number">{certain:.2f}</td></tr>'
                )
        lines = [f"Mean confidence {confidence.mean():.2f}."]
        if agreement is not None:
            lines.append(f"Student and teacher agree on {100 * agreement:.1f} % of the pixels.")
        head = "<tr><td><b>class</b></td><td><b>share</b></td><td></td><td><b>confidence</b></td></tr>"
        return f'<table class="legend">{head}{"".join(rows)}</table><p>{" ".join(lines)}</p>'

    def examples(self, source: str | Path | datasets.Dataset | None) -> list[str]:
        """Images to start from: the first of a folder or a dataset, or scenes of `street`."""
        if isinstance(source, str | Path):
            return [str(path) for path in list_inputs(Path(source))[0][:EXAMPLES]]
        if source is None:
            source = load("street", look="real", num_train=1, num_validation=EXAMPLES, num_test=1)["validation"]
        stored = source.select_columns("image").cast_column("image", datasets.Image(decode=False))
        paths = []
        for index in range(min(EXAMPLES, len(stored))):
            paths.append(str(Path(self.folder.name, f"example-{index}.png")))
            to_pil_image(decode_pixels(stored[index]["image"])[0]).save(paths[-1])
        return paths


def enlarged(picture: np.ndarray, width: int = 480) -> np.ndarray:
    """A small picture (H, W, 3) with pixels as large as it takes to fill a column of the page."""
    factor = -(-width // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def build_page(demo: Demo, examples: str | Path | datasets.Dataset | None = None):
    """The page as `gradio.Blocks`; `launch_page` starts it. `examples`: see `Demo.examples`.

    Raises `RunError` without the extra `demo`.
    """
    check_demo_support()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def show(path: str | None):
        if path is None:
            toggles = gr.CheckboxGroup(choices=[], value=[], visible=False)
            return None, None, toggles, "", None, None, gr.DownloadButton(value=None, interactive=False)
        try:
            seen = demo.look(path)
        except DataError as error:
            raise gr.Error(str(error)) from error
        names = [(demo.teacher.names[index], index) for index in seen["present"]]
        toggles = gr.CheckboxGroup(choices=names, value=seen["present"], visible=True)
        download = gr.DownloadButton(value=seen["file"], interactive=True)
        pictures = enlarged(seen["overlay"]), toggles, seen["legend"], seen["compared"], enlarged(seen["confidence"])
        return (seen["pixels"], seen["maps"]), *pictures, download

    def redraw(seen, shown: list[int]):
        if seen is None:
            return None, None
        drawn, compared = demo.draw(*seen, shown)
        return enlarged(drawn), compared

    buttons = ["download", "fullscreen"]
    sides = "Image against classes" if demo.student is None else "Student (left) against teacher (right)"
    with gr.Blocks(title=f"hf_fst: {demo.teacher.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {demo.teacher.name}\n{len(demo.teacher.names)} classes. Drop an image, or pick one below.")
        seen = gr.State()
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Image", elem_id="image")
                gr.Examples(demo.examples(examples), image, label="Examples", elem_id="examples")
                toggles = gr.CheckboxGroup(label="Classes to show", visible=False, elem_id="toggles")
                legend = gr.HTML(elem_id="legend")
            with gr.Column():
                result = gr.Image(label="Classes", interactive=False, buttons=buttons, elem_id="overlay")
                compared = gr.ImageSlider(label=sides, interactive=False, elem_id="compared")
                line = gr.Slider(
                    0, 100, 50, step=5, label="The line between them (arrow keys move it)", elem_id="line"
                )
                certain = gr.Image(
                    label="Confidence (yellow: certain)",
                    interactive=False,
                    buttons=buttons,
                    elem_id="confidence",
                )
                download = gr.DownloadButton("Download class indices (PNG)", interactive=False, elem_id="download")
        image.change(show, image, [seen, result, toggles, legend, compared, certain, download], api_name="segment")
        quietly = {"api_name": False, "show_progress": "hidden", "trigger_mode": "always_last"}  # no key press is lost
        line.input(lambda at: gr.ImageSlider(slider_position=at), line, compared, **quietly)
        toggles.input(redraw, [seen, toggles], [result, compared], **quietly)
    return page


def launch_page(page, *, share: bool = False, host: str = "127.0.0.1", port: int | None = None, block: bool = True):
    """Serves the page; returns its address where `block` is False. Raises `RunError` where the port is taken."""
    import gradio as gr

    fonts = ["system-ui", "sans-serif"]  # those of the reader's machine: nothing is fetched from elsewhere
    theme = gr.themes.Default(font=fonts, font_mono=["monospace"])
    try:
        _, address, _ = page.launch(
            share=share,
            server_name=host,
            server_port=port,
            theme=theme,
            css=STYLE,
            prevent_thread_lock=not block,
            quiet=not block,
            show_error=True,
        )
    except OSError as error:
        raise RunError(f"The page cannot be served at {host}, port {port} ({error}); give another.") from error
    return address
