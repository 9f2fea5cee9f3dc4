"""Swin, BEiT and DINOv2 of the published networks at tiny widths; see `reference`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .reference import resize, upernet_heads


def heads_of(x, heads):
    """(..., N, C) to (..., heads, N, C/heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attend(q, k, v, bias):
    """Attention of (..., heads, N, d) with an additive bias, back to (..., N, heads*d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


def offsets(side):
    """For each pair of cells of a square window the row of the table of offsets: (side^2, side^2)."""
    cells = [(row, column) for row in range(side) for column in range(side)]
    span = 2 * side - 1
    return torch.tensor([[(a - c + side - 1) * span + (b - d + side - 1) for c, d in cells] for a, b in cells])


def swin_block(w, name, x, heads, window, shift):
    """One block on (B,H,W,C) whose sides the window divides."""
    batch, height, width, channels = x.shape
    y = w.layer_norm(f"{name}.norm1", x, 1e-5)
    region = torch.zeros(1, height, width, 1)
    if shift:
        y = y.roll((-shift, -shift), (1, 2))
        bands = (slice(-window), slice(-window, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
            region[:, rows, columns] = number

    def windows(z):
        z = z.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
        return z.flatten(3, 4).flatten(1, 2).reshape(z.shape[0], -1, window * window, z.shape[-1])

    y, region = windows(y), windows(region)
    mask = -100.0 * (region != region.transpose(-1, -2)).float().unsqueeze(2)
    q, k, v = (heads_of(part, heads) for part in w.linear(f"{name}.attn.w_msa.qkv", y, 3 * channels).chunk(3, -1))
    table = w.get_or_make(f"{name}.attn.w_msa.relative_position_bias_table", (2 * window - 1) ** 2, heads)
    index = w.setdefault(f"{name}.attn.w_msa.relative_position_index", offsets(window))
    y = w.linear(f"{name}.attn.w_msa.proj", attend(q, k, v, table[index].permute(2, 0, 1) + mask), channels)
    y = y.reshape(batch, height // window, width // window, window, window, channels).transpose(2, 3)
    y = y.reshape(batch, height, width, channels)
    x = x + (y.roll((shift, shift), (1, 2)) if shift else y)
    y = w.linear(f"{name}.ffn.layers.0.0", w.layer_norm(f"{name}.norm2", x, 1e-5), 4 * channels)
    return x + w.linear(f"{name}.ffn.layers.1", F.gelu(y), channels)


def upernet_swin(w, x, depths=(2, 1, 2, 1), heads=(1, 2, 2, 4), window=4):
    """mmsegmentation's Swin on sides that are multiples of 128: patches are merged by unfolding, channels first."""
    x = w.conv("backbone.patch_embed.projection", x, 8, 4, 4, bias=True, padding=0).permute(0, 2, 3, 1)
    x = w.layer_norm("backbone.patch_embed.norm", x, 1e-5)
    features = []
    for stage in range(4):
        height, width = x.shape[1:3]
        for block in range(depths[stage]):
            name = f"backbone.stages.{stage}.blocks.{block}"
            x = swin_block(w, name, x, heads[stage], window, window // 2 if block % 2 else 0)
        features.append(w.layer_norm(f"backbone.norm{stage}", x, 1e-5).permute(0, 3, 1, 2))
        if stage < 3:
            channels = x.shape[-1]
            merged = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
            merged = w.layer_norm(f"backbone.stages.{stage}.downsample.norm", merged, 1e-5)
            merged = w.linear(f"backbone.stages.{stage}.downsample.reduction", merged, 2 * channels, bias=False)
            x = merged.unflatten(1, (height // 2, width // 2))
    return upernet_heads(w, features)


def upernet_beit(w, x, width=16, layers=4, heads=2):
    """mmsegmentation's BEiT on 64x64 pixels, all four layers taken, and its feature pyramid."""
    x = w.conv("backbone.patch_embed.projection", x, width, 16, 16, bias=True, padding=0)
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w.get_or_make("backbone.cls_token", 1, 1, width).expand(len(x), -1, -1), x], 1)
    rows = (2 * side - 1) ** 2
    index = torch.full((side * side + 1,) * 2, rows + 1)  # a patch to the class token
    index[0, :] = rows  # the class token to a patch
    index[0, 0] = rows + 2
    index[1:, 1:] = offsets(side)
    features = []
    for layer in range(layers):
        name = f"backbone.layers.{layer}"
        y = w.linear(f"{name}.attn.qkv", w.layer_norm(f"{name}.ln1", x, 1e-6), 3 * width, bias=False)
        q, k, v = y.chunk(3, -1)
        q = q + w.get_or_make(f"{name}.attn.q_bias", width)
        v = v + w.get_or_make(f"{name}.attn.v_bias", width)
        table = w.get_or_make(f"{name}.attn.relative_position_bias_table", rows + 3, heads)
        w[f"{name}.attn.relative_position_index"] = index
        y = attend(*(heads_of(part, heads) for part in (q, k, v)), table[index].permute(2, 0, 1))
        x = x + w.get_or_make(f"{name}.gamma_1", width) * w.linear(f"{name}.attn.proj", y, width)
        y = F.gelu(w.linear(f"{name}.ffn.layers.0.0", w.layer_norm(f"{name}.ln2", x, 1e-6), 2 * width))
        x = x + w.get_or_make(f"{name}.gamma_2", width) * w.linear(f"{name}.ffn.layers.1", y, width)
        features.append(x[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
    first = w.norm("neck.upsample_4x.1", w.up_conv("neck.upsample_4x.0", features[0], width, 2))
    features = [
        w.up_conv("neck.upsample_4x.3", F.gelu(first), width, 2),
        w.up_conv("neck.upsample_2x.0", features[1], width, 2),
        features[2],
        F.max_pool2d(features[3], 2),
    ]
    return upernet_heads(w, features)


def residual_unit(w, name, x):
    y = w.conv(f"{name}.conv1", x.relu(), 8, 3, bias=True)
    return x + w.conv(f"{name}.conv2", y.relu(), 8, 3, bias=True)


def unimatch_v2_dpt(w, x, width=16, layers=4, heads=2, neck=(4, 8, 12, 16)):
    """UniMatch V2's DPT on DINOv2, on 56x56 pixels, for which the position table needs no resizing."""
    x = w.conv("backbone.patch_embed.proj", x, width, 14, 14, bias=True, padding=0)
    rows, columns = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w.get_or_make("backbone.cls_token", 1, 1, width).expand(len(x), -1, -1), x], 1)
    x = x + w.get_or_make("backbone.pos_embed", 1, rows * columns + 1, width)
    w.get_or_make("backbone.mask_token", 1, width)
    taken = []
    for layer in range(layers):
        name = f"backbone.blocks.{layer}"
        y = w.linear(f"{name}.attn.qkv", w.layer_norm(f"{name}.norm1", x, 1e-6), 3 * width)
        y = attend(*(heads_of(part, heads) for part in y.chunk(3, -1)), 0.0)
        x = x + w.get_or_make(f"{name}.ls1.gamma", width) * w.linear(f"{name}.attn.proj", y, width)
        y = F.gelu(w.linear(f"{name}.mlp.fc1", w.layer_norm(f"{name}.norm2", x, 1e-6), 4 * width))
        x = x + w.get_or_make(f"{name}.ls2.gamma", width) * w.linear(f"{name}.mlp.fc2", y, width)
        taken.append(x)
    levels = []
    for level, tokens in enumerate(taken):
        y = w.layer_norm("backbone.norm", tokens, 1e-6)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        y = w.conv(f"head.projects.{level}", y, neck[level], bias=True)
        if level < 2:
            y = w.up_conv(f"head.resize_layers.{level}", y, neck[level], (4, 2)[level])
        elif level == 3:
            y = w.conv("head.resize_layers.3", y, neck[3], 3, 2, bias=True)
        levels.append(w.conv(f"head.scratch.layer{level + 1}_rn", y, 8, 3))
    residual_unit(w, "head.scratch.refinenet4.resConfUnit1", levels[3])
    path = None
    for number in (4, 3, 2, 1):
        name, level = f"head.scratch.refinenet{number}", levels[number - 1]
        path = level if path is None else path + residual_unit(w, f"{name}.resConfUnit1", level)
        path = residual_unit(w, f"{name}.resConfUnit2", path)
        size = levels[number - 2].shape[-2:] if number > 1 else [2 * side for side in level.shape[-2:]]
        path = w.conv(f"{name}.out_conv", resize(path, size, align_corners=True), 8, bias=True)
    path = w.conv("head.scratch.output_conv.0", path, 8, 3, bias=True).relu()
    return w.conv("head.scratch.output_conv.2", path, 5, bias=True), None
