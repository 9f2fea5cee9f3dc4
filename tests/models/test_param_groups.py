"""Groups and schedule give the learning rates of the authors' runs."""

import pytest
import torch

from hf_fst.models.param_groups import parameter_groups, poly_factor, poly_schedule

from .tiny import tiny


def group_of_each(model, **options) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=6e-5, weight_decay=0.01, **options)
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_mix_transformer_norms_do_not_decay_and_the_whole_head_learns_ten_times_faster():
    model = tiny("daformer-mit-b0")
    found = group_of_each(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    expected = {
        "backbone.stages.0.blocks.0.layernorm_before.weight": (6e-5, 0.0),
        "backbone.stages.0.blocks.0.attention.sequence_reduction.layer_norm.bias": (6e-5, 0.0),
        "backbone.stages.0.patch_embeddings.layer_norm.weight": (6e-5, 0.0),
        "backbone.stages.3.layer_norm.weight": (6e-5, 0.0),
        "backbone.stages.0.blocks.0.attention.q_proj.bias": (6e-5, 0.01),
        "backbone.stages.0.patch_embeddings.proj.weight": (6e-5, 0.01),
        "decode_head.classifier.bias": (6e-4, 0.01),
        "decode_head.fuse_layer.bottleneck.bn.weight": (6e-4, 0.01),
    }
    for name, rates in expected.items():
        assert (found[name]["lr"], found[name]["weight_decay"]) == pytest.approx(rates), name


def test_swin_norms_and_position_tables_and_heads_are_grouped_as_in_the_recipe():
    found = group_of_each(tiny("upernet-swin-base"))
    table = "backbone.swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    assert found[table]["name"] == "backbone"
    for name in ("swin.embeddings.norm", "swin.encoder.layers.0.downsample.norm", "hidden_states_norms.stage1"):
        assert found[f"backbone.{name}.weight"]["name"] == "backbone_no_decay"
    assert found["decode_head.bottleneck.batch_norm.weight"]["name"] == "head"
    assert found["auxiliary_head.classifier.weight"]["name"] == "head"


def test_batch_norms_of_a_resnet_decay():
    found = group_of_each(tiny("deeplabv2-resnet50"))
    assert {group["name"] for group in found.values()} == {"backbone", "head"}
    assert found["backbone.body.bn1.weight"]["weight_decay"] == 0.01


def test_without_exceptions_everything_decays_and_frozen_weights_are_left_out():
    found = group_of_each(tiny("upernet-beit-base"), no_decay=())
    assert {group["weight_decay"] for group in found.values()} == {0.01}
    model = tiny("deeplabv3plus-resnet101-cityscapes")
    model.auxiliary_head.requires_grad_(False)
    assert not any(name.startswith("auxiliary_head") for name in group_of_each(model))


@pytest.mark.parametrize(
    ("step", "rate"),
    # The first three were read from the authors' run; 3e-5 is half of the base rate at half of the steps.
    [(0, 6.0e-11), (1, 4.006e-8), (1500, 5.775e-5), (20_000, 3e-5), (40_000, 0.0)],
)
def test_domain_adaptation_schedule_gives_the_recorded_rates(step, rate):
    factor = poly_factor(step, 40_000, power=1.0, warmup_steps=1500, warmup_ratio=1e-6)
    assert 6e-5 * factor == pytest.approx(rate, rel=1e-4)


def test_semi_supervised_schedule_has_power_nine_tenths_and_each_group_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 1e-3}, {"params": weights[1:], "lr": 1e-2}])
    schedule = poly_schedule(optimizer, num_training_steps=4, power=0.9)
    rates = [schedule.get_last_lr()]
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr())
    # 0.75^0.9, 0.5^0.9, 0.25^0.9
    factors = [1.0, 0.7718895, 0.5358867, 0.2871746, 0.0]
    for found, factor in zip(rates, factors, strict=True):
        assert found == pytest.approx([1e-3 * factor, 1e-2 * factor], rel=1e-6)


def test_schedule_of_no_steps_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="needs at least one step"):
        poly_schedule(optimizer, 0)
