"""ONNX files give what PyTorch gives."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, MobileViTImageProcessor, SegformerImageProcessor

from hf_fst import cli
from hf_fst.errors import UserError
from hf_fst.models import build
from hf_fst.prediction import export as module
from tests import architectures
from tests.evaluation.conftest import NAMES, run_dir, tiny_model  # noqa: F401  the fixture
from tests.models.tiny import tiny

NETWORKS = {
    "segformer": lambda: architectures.make("segformer"),
    "daformer": lambda: tiny("daformer-mit-b0"),
    "deeplabv3plus": lambda: tiny("deeplabv3plus-resnet101-unimatch"),
    "upernet-convnext": lambda: architectures.make("upernet_convnext"),
    "upernet-swin": lambda: tiny("upernet-swin-base"),
    "fpn-efficientnet": lambda: build("fpn-efficientnet-lite0", num_labels=3),
}
# pyramid pooling, and padding that depends on the size
FIXED = {"upernet-convnext": (64, 96), "upernet-swin": (64, 64), "fpn-efficientnet": (64, 96)}


@pytest.mark.slow  # tracing takes seconds each; the tests below run one network in the default suite
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_the_logits_and_the_argmax_of_pytorch(name, tmp_path):
    NETWORKS[name]().save_pretrained(tmp_path / "model")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "model")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    result = module.export_onnx(tmp_path / "model", tmp_path / "it.onnx", size=FIXED.get(name))
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    sizes = [FIXED[name]] if name in FIXED else [(64, 96), (130, 70)]
    for batch, size in [(1, sizes[0]), (3, sizes[-1])]:
        pixel_values = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).logits.numpy()
        found = session.run(None, {"pixel_values": pixel_values.numpy()})[0]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-3
        assert np.array_equal(found.argmax(1), expected.argmax(1)) and len(np.unique(found.argmax(1))) > 1
    assert 0 <= result["max_difference"] < 1e-3 and result["argmax_agreement"] > 0.999


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("onnx") / "new" / "full.onnx"
    argv = ["export", str(run_dir), "--to", "onnx", "-o", str(path), "--student", "--full_size", "--size", "48,64"]
    assert cli.main(argv) == 0
    return path


def test_logits_at_full_size_of_the_student(exported, run_dir):  # noqa: F811
    pixel_values = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = tiny_model(2)(pixel_values=pixel_values).logits
    expected = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear").numpy()
    found = onnxruntime.InferenceSession(exported).run(["logits"], {"pixel_values": pixel_values.numpy()})[0]
    assert found.shape == (2, 4, 48, 64) and np.abs(found - expected).max() < 1e-3
    assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_the_metadata_say_how_to_use_it(exported):
    keys = "classes palette image_mean image_std align_corners full_size model_type revision".split()
    found = {prop.key: prop.value for prop in onnx.load(exported).metadata_props}
    props = {key: json.loads(found[key]) for key in keys}
    assert props["classes"] == NAMES and len(props["palette"]) == 4
    assert props["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert props["image_std"] == pytest.approx([0.229, 0.224, 0.225])
    assert props["full_size"] is True and props["align_corners"] is False and props["model_type"] == "segformer"
    assert props["revision"].startswith("sha256:")
    assert [path.name for path in exported.parent.iterdir()] == ["full.onnx"]


def test_the_file_holds_no_path_of_the_machine_that_wrote_it(exported):
    assert str(Path(module.__file__).parents[2]).encode() not in exported.read_bytes()


def test_a_file_that_is_there_is_not_replaced_unless_told(exported, run_dir, capsys):  # noqa: F811
    capsys.readouterr()
    assert cli.main(["export", str(run_dir), "-o", str(exported)]) == 1
    sentence = f"hf-fst: {exported} is there already; give another file, or --overwrite to replace it.\n"
    assert capsys.readouterr().err == sentence


def test_a_network_whose_onnx_file_is_wrong_is_refused(run_dir, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(module, "compare", lambda *args: (0.02, 0.9))
    argv = ["export", str(run_dir), "-o", str(tmp_path / "x.onnx")]
    assert cli.main([*argv, "--size", "32,32"]) == 1
    assert "The exported network differs from PyTorch by up to 0.02, more than 0.001; it is" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pyramid_pooling_needs_a_size(tmp_path, capsys):
    architectures.make("upernet_convnext").save_pretrained(tmp_path / "model")
    assert cli.main(["export", str(tmp_path / "model"), "-o", str(tmp_path / "x.onnx")]) == 1
    assert "give --size HEIGHT,WIDTH to export it for one size." in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_padding_by_the_size_of_the_input_needs_a_size(tmp_path):
    build("fpn-efficientnet-lite0", num_labels=3).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="pads by the size of its input.*give --size HEIGHT,WIDTH"):
        module.export_onnx(tmp_path / "model", tmp_path / "x.onnx")


def test_wrong_options(run_dir, tmp_path, capsys, monkeypatch):  # noqa: F811
    assert cli.main(["export", str(run_dir), "--size", "512"]) == 2
    assert "--size is '512'; give 2 numbers with commas between them." in capsys.readouterr().err
    assert cli.main(["export", str(run_dir), "--size", "0,5"]) == 1
    assert "size is (0, 5), but (height, width) in pixels is needed" in capsys.readouterr().err
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", str(run_dir)]) == 1
    assert capsys.readouterr().err.endswith('onnxscript: pip install "hf_fst[onnx]".\n')


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(
            SegformerImageProcessor(
                do_resize=False, rescale_factor=1 / 128, image_mean=[1.0, 0.9, 0.8], image_std=0.5
            ),
            id="another factor",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SegformerImageProcessor(do_resize=False, do_rescale=False, image_mean=[99.0, 98.0, 97.0], image_std=50.0),
            id="no factor",
            marks=pytest.mark.slow,
        ),
        pytest.param(MobileViTImageProcessor(do_resize=False, do_center_crop=False), id="blue first"),
    ],
)
def test_the_metadata_normalizes_as_the_image_processor_does(processor, tmp_path):
    """By the one formula of the documentation."""
    tiny_model(3).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    module.export_onnx(tmp_path, tmp_path / "it.onnx", size=(48, 64))
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    values = ((rgb / 255 - about["image_mean"]) / about["image_std"]).transpose(2, 0, 1)[None].astype(np.float32)
    with torch.no_grad():
        expected = tiny_model(3)(
            pixel_values=processor(images=rgb, return_tensors="pt")["pixel_values"]
        ).logits.numpy()
    assert np.abs(session.run(None, {"pixel_values": values})[0] - expected).max() < 1e-3
