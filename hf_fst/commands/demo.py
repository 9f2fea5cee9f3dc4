"""`hf-fst demo`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from hf_fst.commands.common import Flip, Model, Resize, Scales, Stride, Trust, Window, look


def demo(
    model: Model,
    examples: Annotated[
        str | None,
        Option(metavar="DIR", help="A folder of images to start from; default: the run's own, or scenes of street."),
    ] = None,
    share: Annotated[
        bool, Option("--share", help="Also serve it at a public address, through Gradio's servers.")
    ] = False,
    host: Annotated[
        str, Option(metavar="ADDRESS", help="0.0.0.0 makes it reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, Option(min=1, max=65535, metavar="N", help="Default: the first free port from 7860 up.")
    ] = None,
    resize: Resize = None,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = "1",
    flip: Flip = False,
    trust_remote_code: Trust = False,
) -> dict:
    """Try a model in the browser (needs hf_fst[demo]).

    Drop an image or pick an example; see its classes, their shares, student against teacher, and the confidence; hide
    classes; download the class indices. The examples are validation images of the run where these are your own or
    drawn; those of a known dataset are left out, for their license.

    Examples:
      hf-fst demo runs/street_da
      hf-fst demo runs/city --examples images/ --window 769 --stride 513 --port 8000
    """
    from hf_fst.prediction.demo import Demo, build_page, check_demo_support, launch_page
    from hf_fst.recipes.evaluation import images_to_show

    check_demo_support()
    shown = Demo(model, look(model, resize, window, stride, scales, flip), trust_remote_code)
    page = build_page(shown, examples or images_to_show(model))
    return {"address": launch_page(page, share=share, host=host, port=port)}
