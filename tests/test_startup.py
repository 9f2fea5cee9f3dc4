"""What importing hf_fst costs, and that transformers knows our networks without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_fst
from hf_fst.models import MODELS
from tests.models.tiny import tiny

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
HEAVY = {"torch", "transformers", "datasets", "numpy", "yaml", "matplotlib", "kornia", "timm"}


def run(code: str, *argv: str) -> str:
    """What Python code prints in a process of its own."""
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    assert run(f"import hf_fst, sys; dir(hf_fst); print(sorted({HEAVY} & set(sys.modules)))") == "[]\n"


def test_every_public_name_is_there_and_no_other():
    for name in hf_fst.__all__:
        assert getattr(hf_fst, name) is not None and name in dir(hf_fst)
    with pytest.raises(AttributeError, match="has no attribute 'FSTrainer'"):
        hf_fst.FSTrainer  # noqa: B018


def test_the_table_of_stand_ins_names_every_network():
    assert hf_fst._CONFIGURATIONS == {config.model_type: config.__name__ for config in MODELS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved network of ours with its image processor."""
    from transformers import SegformerImageProcessor

    folder = tmp_path_factory.mktemp("daformer")
    tiny("daformer-mit-b0").save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return str(folder)


def test_a_pipeline_knows_our_networks_and_the_trainer_loads_only_what_it_needs(folder):
    code = (
        "import sys, hf_fst, pickle, PIL.Image\nfrom transformers import AutoConfig, CONFIG_MAPPING, pipeline\n"
        "assert 'hf_fst.models' not in sys.modules and 'daformer' in CONFIG_MAPPING\n"
        "table = pickle.loads(pickle.dumps(CONFIG_MAPPING))\n"
        "model = pipeline('image-segmentation', sys.argv[1])\nparts = model(PIL.Image.new('RGB', (64, 64)))\n"
        "print(type(model.model).__name__, parts[0]['mask'].size, table['daformer'].model_type)\n"
        "print(type(AutoConfig.for_model('pspnet', num_labels=3)).__name__)\n"
        "from hf_fst import FSTTrainer\nprint({'matplotlib', 'kornia', 'timm'} & set(sys.modules))"
    )
    assert run(code, folder) == "DAFormerForSemanticSegmentation (64, 64) daformer\nPSPNetConfig\nset()\n"


@pytest.mark.parametrize(
    "imports",
    [
        "from transformers import CONFIG_MAPPING; import hf_fst",
        pytest.param(
            "import transformers, hf_fst.errors; from transformers import CONFIG_MAPPING", marks=pytest.mark.slow
        ),
    ],
)
def test_transformers_lists_our_networks_in_any_order_of_imports(imports):
    code = f"{imports}\nprint('daformer' in CONFIG_MAPPING, 'hf_fst.models' in __import__('sys').modules)"
    assert run(code) == "True False\n"
