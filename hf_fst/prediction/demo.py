"""A page to try a model on: drop an image, see the classes, student against teacher, and how certain the model is."""

from __future__ import annotations

import html
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from hf_fst.data import load
from hf_fst.drawing.overlays import overlay
from hf_fst.errors import DataError, RunError
from hf_fst.evaluation.inference import WHOLE, Look
from hf_fst.prediction.files import list_inputs
from hf_fst.prediction.predict import index_image
from hf_fst.prediction.segmenter import Picture, Segmenter, one_by_one_if_it_fails

EXAMPLES = 4
STYLE = """
.legend td {padding: 2px 10px 2px 0; border: none}
.legend .swatch {display: inline-block; width: 1em; height: 1em; border: 1px solid #808080; vertical-align: middle}
.legend .bar {display: inline-block; height: 0.7em; vertical-align: middle}
.legend .number {text-align: right; font-variant-numeric: tabular-nums}
"""


def check_demo_support() -> None:
    """Raises `RuntimeError` where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise RunError('The page is made with Gradio, which is not installed: pip install "hf_fst[demo]".')


class Demo:
    """What the page shows of an image.

    Args:
        model: directory or Hub id; with a student in it, the page compares the two.
        look: how it looks at images.

    Raises `ValueError`, `FileNotFoundError` where the model is not there.
    """

    def __init__(self, model: str | Path, look: Look = WHOLE):
        self.teacher = Segmenter(model, "teacher", look=look)
        try:
            self.student = Segmenter(model, "student", look=look)
        except FileNotFoundError:  # a model that was not trained here
            self.student = None
        self.folder = tempfile.TemporaryDirectory(prefix="hf-fst-demo-")
        self.count = 0

    def look(self, path: str | Path) -> dict[str, Any]:
        """What there is to see of an image file.

        Returns: `overlay` uint8 (H, W, 3), `compared` (two such pictures), `confidence` uint8 (H, W, 3), `legend` as
        HTML, and `file`, the path of the index PNG.

        Raises `DataError` where the file is no image, or one that the network cannot take.
        """
        picture = self.teacher.read({"path": str(path), "bytes": None})
        classes, confidence = self._run(self.teacher, picture, path)
        shown = overlay(picture.pixels, classes, self.teacher.palette)
        before, agreement = picture.pixels, None
        if self.student is not None:
            theirs, _ = self._run(self.student, picture, path)
            before, agreement = overlay(picture.pixels, theirs, self.teacher.palette), (theirs == classes).mean()
        self.count += 1
        file = Path(self.folder.name, f"{self.count}", f"{Path(path).stem}-classes.png")
        file.parent.mkdir()
        with open(file, "wb") as target:
            index_image(classes, self.teacher.palette)(target)
        colors = colormaps["viridis"](confidence)[..., :3]
        return {
            "overlay": shown,
            "compared": (before, shown),
            "confidence": np.rint(255 * colors).astype(np.uint8),
            "legend": self._legend(classes, confidence, agreement),
            "file": str(file),
        }

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

    def examples(self, folder: str | Path | None) -> list[str]:
        """Images to start from: the first of a folder, or scenes of `street`."""
        if folder is not None:
            return [str(path) for path in list_inputs(Path(folder))[0][:EXAMPLES]]
        scenes = load("street", look="real", num_train=1, num_validation=EXAMPLES, num_test=1)["validation"]
        paths = []
        for index, row in enumerate(scenes):
            paths.append(str(Path(self.folder.name, f"street-{index}.png")))
            row["image"].save(paths[-1])
        return paths


def enlarged(picture: np.ndarray, width: int = 480) -> np.ndarray:
    """A small picture (H, W, 3) with pixels as large as it takes to fill a column of the page."""
    factor = -(-width // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def build_page(demo: Demo, examples: str | Path | None = None):
    """The page as `gradio.Blocks`; `launch_page` starts it. Raises `RuntimeError` without the extra `demo`."""
    check_demo_support()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def show(path: str | None):
        if path is None:
            return None, "", None, None, gr.DownloadButton(value=None, interactive=False)
        try:
            seen = demo.look(path)
        except DataError as error:
            raise gr.Error(str(error)) from error
        download = gr.DownloadButton(value=seen["file"], interactive=True)
        pictures = enlarged(seen["overlay"]), seen["legend"], seen["compared"], enlarged(seen["confidence"])
        return *pictures, download

    buttons = ["download", "fullscreen"]
    sides = "Image against classes" if demo.student is None else "Student (left) against teacher (right)"
    with gr.Blocks(title=f"hf_fst: {demo.teacher.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {demo.teacher.name}\n{len(demo.teacher.names)} classes. Drop an image, or pick one below.")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Image", elem_id="image")
                gr.Examples(demo.examples(examples), image, label="Examples", elem_id="examples")
                legend = gr.HTML(elem_id="legend")
            with gr.Column():
                result = gr.Image(label="Classes", interactive=False, buttons=buttons, elem_id="overlay")
                compared = gr.ImageSlider(label=sides, interactive=False, elem_id="compared")
                certain = gr.Image(
                    label="Confidence: dark is uncertain, yellow is certain",
                    interactive=False,
                    buttons=buttons,
                    elem_id="confidence",
                )
                download = gr.DownloadButton("Download the class indices (PNG)", interactive=False, elem_id="download")
        image.change(show, image, [result, legend, compared, certain, download], api_name="segment")
    return page


def launch_page(page, *, share: bool = False, host: str = "127.0.0.1", port: int | None = None, block: bool = True):
    """Serves the page; returns its address where `block` is False. Raises `RuntimeError` where the port is taken."""
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
