"""From the parameter names of published checkpoints to those of this package's networks, one function a network.

Each takes a state dict without the prefixes of its container (`model.`, `module.`, ...) and returns the state dict of
our model: it renames, splits and reorders.
"""

from __future__ import annotations

import re

import torch

State = dict[str, torch.Tensor]


def _rename(state: State, rules: list[tuple[str, str]]) -> State:
    """Applies to each name every rule (pattern, replacement) in turn."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _split(state: State, pattern: str, parts: tuple[str, ...]) -> State:
    """Splits stacked projections along their rows; what matches `pattern` in a name becomes each of `parts`."""
    split = {}
    for name, tensor in state.items():
        if re.search(pattern, name) and tensor.shape[0] % len(parts) == 0:
            for part, chunk in zip(parts, tensor.chunk(len(parts), dim=0), strict=True):
                split[re.sub(pattern, part, name)] = chunk.clone()
        else:
            split[name] = tensor
    return split


_RESNET_V1C = [
    (r"^backbone\.stem\.7\.", "backbone.body.bn1."),
    (r"^backbone\.stem\.", "backbone.body.conv1."),
    (r"^backbone\.layer", "backbone.body.layer"),
]


def _conv_bn(source: str, target: str, first: int = 0) -> list[tuple[str, str]]:
    """Convolution and norm, the `first` of a Sequential and the next, to a `ConvBNReLU`."""
    return [(rf"^{source}\.{first}\.", f"{target}.conv."), (rf"^{source}\.{first + 1}\.", f"{target}.bn.")]


_UPERNET_HEADS = [
    (r"^((?:decode|auxiliary)_head\..*)\.bn\.", r"\1.batch_norm."),
    (r"^((?:decode|auxiliary)_head)\.conv_seg\.", r"\1.classifier."),
]


def daformer(state: State) -> State:
    """MiT encoder and DAFormer head of mmsegmentation-style checkpoints."""
    state = _split(state, r"attn\.kv\.", ("attn.k_proj.", "attn.v_proj."))

    parts = {"patch_embed": "patch_embeddings", "block": "blocks", "norm": "layer_norm"}

    def stage(match: re.Match) -> str:
        return f"backbone.stages.{int(match[2]) - 1}.{parts[match[1]]}"

    state = {re.sub(r"^backbone\.(patch_embed|block|norm)(\d)", stage, name): tensor for name, tensor in state.items()}
    return _rename(
        state,
        [
            (r"(\.patch_embeddings)\.norm\.", r"\1.layer_norm."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attn\.q\.", ".attention.q_proj."),
            (r"\.attn\.([kv])_proj\.", r".attention.\1_proj."),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
            (r"^decode_head\.conv_seg\.", "decode_head.classifier."),
        ],
    )


def deeplabv2(state: State) -> State:
    """ResNetV1c and DeepLabV2 head of mmsegmentation-style checkpoints."""
    return _rename(
        state, [*_RESNET_V1C, (r"^decode_head\.aspp_modules\.(\d+)\.conv\.", r"decode_head.classifiers.\1.")]
    )


def pspnet(state: State) -> State:
    """ResNetV1c and PSP head of mmsegmentation-style checkpoints."""
    return _rename(
        state,
        [
            *_RESNET_V1C,
            (r"^decode_head\.psp_modules\.(\d+)\.1\.", r"decode_head.pyramid.stages.\1.1."),
            (r"^decode_head\.bottleneck\.", "decode_head.pyramid.bottleneck."),
            (r"^decode_head\.conv_seg\.", "decode_head.classifier.1."),
        ],
    )


def _undo_unfold(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """mmsegmentation merges patches with `nn.Unfold`: channel-major, neighbors row by row.

    Swin (and transformers) concatenates the four neighbors column by column, so the last axis (C,4) becomes (4,C)
    with the two middle neighbors exchanged.
    """
    if not re.search(r"\.downsample\.(reduction|norm)\.", name):
        return tensor
    channels = tensor.shape[-1] // 4
    neighbors = tensor.unflatten(-1, (channels, 4)).transpose(-1, -2)
    return neighbors[..., [0, 2, 1, 3], :].flatten(-2).clone()


def upernet_swin(state: State) -> State:
    """Swin and UPerNet heads of mmsegmentation-style checkpoints."""
    state = _split(state, r"attn\.w_msa\.qkv\.", ("attn.q_proj.", "attn.k_proj.", "attn.v_proj."))
    state = {name: _undo_unfold(name, tensor) for name, tensor in state.items()}

    def level(match: re.Match) -> str:
        return f"backbone.hidden_states_norms.stage{int(match[1]) + 1}."

    state = {re.sub(r"^backbone\.norm(\d)\.", level, name): tensor for name, tensor in state.items()}
    return _rename(
        state,
        [
            (r"^backbone\.patch_embed\.projection\.", "backbone.swin.embeddings.patch_embeddings.projection."),
            (r"^backbone\.patch_embed\.norm\.", "backbone.swin.embeddings.norm."),
            (r"^backbone\.stages\.", "backbone.swin.encoder.layers."),
            (r"\.attn\.([qkv])_proj\.", r".attention.\1_proj."),
            (r"\.attn\.w_msa\.proj\.", ".attention.o_proj."),
            (
                r"\.attn\.w_msa\.relative_position_bias_table$",
                ".attention.relative_position_bias.relative_position_bias_table",
            ),
            (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
            (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            *_UPERNET_HEADS,
        ],
    )


def upernet_beit(state: State) -> State:
    """BEiT, feature pyramid and UPerNet heads of mmsegmentation-style checkpoints."""
    state = _split(state, r"attn\.qkv\.", ("attn.q_proj.", "attn.k_proj.", "attn.v_proj."))
    return _rename(
        state,
        [
            (r"^backbone\.cls_token$", "backbone.beit.embeddings.cls_token"),
            (r"^backbone\.patch_embed\.projection\.", "backbone.beit.embeddings.patch_embeddings.projection."),
            (r"^backbone\.layers\.", "backbone.beit.layers."),
            (r"\.attn\.([qkv])_proj\.", r".attention.\1_proj."),
            (r"\.attn\.([qv])_bias$", r".attention.\1_proj.bias"),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (
                r"\.attn\.relative_position_bias_table$",
                ".relative_position_bias.relative_position_bias_table",
            ),
            (r"\.ln1\.", ".layernorm_before."),
            (r"\.ln2\.", ".layernorm_after."),
            (r"\.gamma_(\d)$", r".lambda_\1"),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"^neck\.upsample_4x\.0\.", "backbone.fpn.fpn1.conv_transpose1."),
            (r"^neck\.upsample_4x\.1\.", "backbone.fpn.fpn1.normalization."),
            (r"^neck\.upsample_4x\.3\.", "backbone.fpn.fpn1.conv_transpose2."),
            (r"^neck\.upsample_2x\.0\.", "backbone.fpn.fpn2."),
            *_UPERNET_HEADS,
        ],
    )


_SEMI_ENCODER = (r"^encoder\.", "backbone.body.")


def semi_deeplabv2(state: State) -> State:
    """Deep-stem ResNet and DeepLabV2 decoder of U2PL-style checkpoints."""
    return _rename(state, [_SEMI_ENCODER, (r"^decoder\.classifier\.conv2d_list\.", "decode_head.classifiers.")])


def semi_pspnet(state: State) -> State:
    """Deep-stem ResNet and pixel-shuffle PSPNet decoder of U2PL-style checkpoints."""
    return _rename(
        state,
        [
            _SEMI_ENCODER,
            (r"^decoder\.psp\.stages\.(\d+)\.1\.", r"decode_head.pyramid.stages.\1.1.conv."),
            (r"^decoder\.psp\.stages\.(\d+)\.2\.", r"decode_head.pyramid.stages.\1.1.bn."),
            *_conv_bn(r"decoder\.psp\.bottleneck", "decode_head.pyramid.bottleneck"),
            (r"^decoder\.decoder\.", "decode_head.classifier."),
        ],
    )


def semi_deeplabv3plus(state: State) -> State:
    """Deep-stem ResNet, DeepLabV3+ decoder and auxiliary head of U2PL-style checkpoints."""
    branches = [
        rule
        for index in range(4)
        for rule in _conv_bn(rf"decoder\.aspp\.conv{index + 2}", f"decode_head.aspp.branches.{index}")
    ]
    return _rename(
        state,
        [
            _SEMI_ENCODER,
            *_conv_bn(r"decoder\.aspp\.conv1", "decode_head.aspp.image_pool", 1),
            *branches,
            *_conv_bn(r"decoder\.head", "decode_head.projection"),
            *_conv_bn(r"decoder\.low_conv", "decode_head.low_level"),
            *_conv_bn(r"decoder\.classifier", "decode_head.classifier.0"),
            *_conv_bn(r"decoder\.classifier", "decode_head.classifier.2", 4),
            (r"^decoder\.classifier\.8\.", "decode_head.classifier.4."),
            *_conv_bn(r"auxor\.aux", "auxiliary_head.conv"),
            (r"^auxor\.aux\.4\.", "auxiliary_head.classifier."),
        ],
    )


def unimatch_deeplabv3plus(state: State) -> State:
    """Deep-stem ResNet and DeepLabV3+ decoder of UniMatch's checkpoints."""
    branches = [
        rule for index in range(4) for rule in _conv_bn(rf"head\.b{index}", f"decode_head.aspp.branches.{index}")
    ]
    projection = state["head.project.0.weight"]
    # Theirs concatenates the pooled branch last, ours first.
    pooled = projection.shape[1] // 5
    state = {**state, "head.project.0.weight": projection.roll(pooled, dims=1)}
    return _rename(
        state,
        [
            (r"^backbone\.", "backbone.body."),
            *_conv_bn(r"head\.b4\.gap", "decode_head.aspp.image_pool", 1),
            *branches,
            *_conv_bn(r"head\.project", "decode_head.projection"),
            *_conv_bn(r"reduce", "decode_head.low_level"),
            *_conv_bn(r"fuse", "decode_head.classifier.0"),
            *_conv_bn(r"fuse", "decode_head.classifier.2", 3),
            (r"^classifier\.", "decode_head.classifier.4."),
        ],
    )


def unimatch_v2_dpt(state: State) -> State:
    """DINOv2 and DPT of UniMatch V2's checkpoints."""
    state = _split(state, r"attn\.qkv\.", ("attn.q_proj.", "attn.k_proj.", "attn.v_proj."))
    # Their refinement blocks are numbered from 1, the finest; layer{n}_rn likewise.
    levels = [
        rule
        for level in range(4)
        for rule in (
            (rf"^head\.projects\.{level}\.", f"decode_head.reassemble.{level}.projection."),
            (rf"^head\.resize_layers\.{level}\.", f"decode_head.reassemble.{level}.resize."),
            (rf"^head\.scratch\.layer{level + 1}_rn\.", f"decode_head.convs.{level}."),
            (rf"^head\.scratch\.refinenet{level + 1}\.out_conv\.", f"decode_head.fusion.{level}.projection."),
            (
                rf"^head\.scratch\.refinenet{level + 1}\.resConfUnit(\d)\.conv(\d)\.",
                rf"decode_head.fusion.{level}.residual_layer\1.convolution\2.",
            ),
        )
    ]
    return _rename(
        state,
        [
            (r"^backbone\.cls_token$", "backbone.embeddings.cls_token"),
            (r"^backbone\.pos_embed$", "backbone.embeddings.position_embeddings"),
            (r"^backbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
            (r"^backbone\.norm\.", "backbone.layernorm."),
            (r"^backbone\.blocks\.", "backbone.encoder.layer."),
            (r"\.attn\.([qkv])_proj\.", r".attention.\1_proj."),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
            *levels,
            (r"^head\.scratch\.output_conv\.0\.", "decode_head.output.0."),
            (r"^head\.scratch\.output_conv\.2\.", "decode_head.output.3."),
        ],
    )
