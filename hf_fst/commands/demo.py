"""`hf-fst demo`."""

from __future__ import annotations

import argparse

from hf_fst.commands.common import add_common, add_model, add_views, views, whole


def add(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="try a model in the browser (needs hf_fst[demo])",
        description="Serve a page to try a model on: drop an image or pick an example; see its classes, their shares,\n"
        "student against teacher, and the confidence; take the class indices with you.",
        epilog="examples:\n"
        "  hf-fst demo runs/street_da_fst_d\n"
        "  hf-fst demo runs/city --examples images/ --window 769 --stride 513 --port 8000\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    parser.add_argument("--examples", metavar="DIR", help="a folder of images to start from (scenes of street)")
    parser.add_argument("--share", action="store_true", help="also give a public address, through Gradio's servers")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines (127.0.0.1)")
    parser.add_argument("--port", type=whole(1, 65535), metavar="N", help="the first free one from 7860 on by default")
    add_views(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.prediction.demo import Demo, build_page, check_demo_support, launch_page

    check_demo_support()
    page = build_page(Demo(arguments.model, **views(arguments)), arguments.examples)
    address = launch_page(page, share=arguments.share, host=arguments.host, port=arguments.port)
    return {"address": address}
