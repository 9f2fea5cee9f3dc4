"""Whole-image, sliding-window and multi-view inference, with models whose logits can be worked out."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_fst.errors import UserError
from hf_fst.evaluation import Look, predict, segment
from hf_fst.evaluation.inference import AT_ONCE, argmax_at, window_starts


class PerPixel(nn.Module):
    """Logits are a function of the pixel alone, so windows and mirrors must change nothing."""

    def forward(self, pixel_values):
        return SimpleNamespace(logits=torch.cat([pixel_values, pixel_values.sin()], dim=1))


class Strided(nn.Module):
    """Logits at a quarter of the size that depend on the neighborhood, and on the place within the input."""

    def __init__(self, classes=5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, 3, 4, 4, generator=generator))
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(pixel_values.shape)
        logits = F.conv2d(pixel_values, self.weight, stride=4)
        return SimpleNamespace(logits=logits + torch.linspace(0, 1, logits.shape[-1]))


class Counter(nn.Module):
    """The n-th call answers n everywhere."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, pixel_values):
        self.calls += 1
        return SimpleNamespace(
            logits=pixel_values.new_full((len(pixel_values), 1, *pixel_values.shape[-2:]), self.calls)
        )


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def by_hand_sliding(model, images, window, stride):
    """mmsegmentation's slide inference, written out from its definition."""
    height, width = images.shape[-2:]
    total, seen = 0, torch.zeros(height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            crop = images[:, :, top:bottom, left:right]
            logits = F.interpolate(model(crop).logits, crop.shape[-2:], mode="bilinear", align_corners=False)
            total = total + F.pad(logits, (left, width - right, top, height - bottom))
            seen[top:bottom, left:right] += 1
    return total / seen


class TestWholeImage:
    def test_logits_are_resized_to_the_size_of_the_labels(self, images):
        model = Strided()
        expected = F.interpolate(model(images).logits, (50, 70), mode="bilinear", align_corners=False)
        assert torch.equal(segment(model, images, (50, 70)), expected)
        assert segment(model, images).shape == (2, 5, 24, 40)

    def test_bilinear_values_by_hand(self):
        # two pixels 0 and 4 to four: with half-pixel centers 0, 1, 3, 4; with aligned corners it were 0, 4/3, 8/3, 4
        model = PerPixel()
        logits = segment(model, torch.tensor([0.0, 4.0]).expand(1, 3, 1, 2), size=(1, 4))
        assert logits[0, 0, 0].tolist() == [0, 1, 3, 4]

    def test_half_precision_logits_are_resized_in_full(self, images):
        class Half(nn.Module):
            def forward(self, pixel_values):
                return SimpleNamespace(logits=pixel_values[..., ::4, ::4].bfloat16())

        logits = segment(Half(), images)
        assert logits.dtype == torch.float32
        expected = images[..., ::4, ::4].bfloat16().float()
        assert torch.equal(logits, F.interpolate(expected, (24, 40), mode="bilinear", align_corners=False))

    def test_no_gradient_and_the_mode_stays(self, images):
        model = Strided().train()
        assert not segment(model, images).requires_grad and model.training


class TestSliding:
    @pytest.mark.parametrize("length, window, stride, starts", [
        (10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 3, [0]), (3, 4, 3, [0]), (5, 4, 4, [0, 1]),
        (2048, 769, 513, [0, 513, 1026, 1279]),
    ])  # fmt: skip
    def test_the_last_window_is_shifted_inside(self, length, window, stride, starts):
        assert window_starts(length, window, stride) == starts

    @pytest.mark.parametrize("window, stride", [(16, 8), (16, 12), (16, 16), (24, 7), (20, 13), (100, 50)])
    @pytest.mark.parametrize("at_once", [1, 3])
    def test_equals_the_definition(self, images, window, stride, at_once, monkeypatch):
        monkeypatch.setitem(AT_ONCE, "cpu", at_once)
        model = Strided()
        with torch.no_grad():
            expected = by_hand_sliding(model, images, window, stride)
        windows = len(model.seen)
        torch.testing.assert_close(segment(model, images, look=Look(window, stride)), expected)
        assert len(model.seen) - windows == math.ceil(windows / at_once)

    @pytest.mark.parametrize("window, stride", [(7, 5), ((9, 40), (4, 13)), (64, None)])
    def test_windows_change_nothing_for_a_model_of_single_pixels(self, images, window, stride):
        got = segment(PerPixel(), images, look=Look(window, stride))
        torch.testing.assert_close(got, segment(PerPixel(), images))

    def test_overlaps_are_averaged_by_hand(self):
        # columns 0-3 are seen by the first window, 2-5 by the second
        logits = segment(Counter(), torch.zeros(1, 3, 4, 6), look=Look(window=4, stride=2))
        assert logits[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]

    def test_no_window_is_larger_than_asked_for(self, images):
        model = Strided()
        segment(model, images, look=Look(window=(16, 20), stride=(8, 12)))
        assert {tuple(shape) for shape in model.seen} == {(2, 3, 16, 20)}


class TestViews:
    def test_a_mirrored_view_is_turned_back(self, images):
        plain = segment(PerPixel(), images, look=Look(flip=True))
        torch.testing.assert_close(plain, segment(PerPixel(), images).log_softmax(1))

    @pytest.mark.parametrize("scale", [0.5, 1.5])
    def test_a_scaled_view_is_antialiased_where_it_is_smaller(self, images, scale):
        size = [round(side * scale) for side in images.shape[-2:]]
        view = F.interpolate(images, size, mode="bilinear", antialias=scale < 1)
        assert torch.equal(segment(Strided(), images, look=Look(scales=(scale,))), segment(Strided(), view, (24, 40)))

    def test_average_of_probabilities_by_hand(self, images):
        model = Strided()
        with torch.no_grad():
            views = [model(images).logits, model(images.flip(-1)).logits.flip(-1)]
        size = images.shape[-2:]
        views = [F.interpolate(view, size, mode="bilinear", align_corners=False) for view in views]
        expected = (views[0].softmax(1) + views[1].softmax(1)) / 2
        got = segment(model, images, look=Look(flip=True))
        torch.testing.assert_close(got.exp(), expected)
        torch.testing.assert_close(got.softmax(1), expected)

    def test_each_scale_is_looked_at(self, images):
        model = Strided()
        logits = segment(model, images, size=(30, 30), look=Look(scales=(0.5, 1.0, 2.0), flip=True))
        assert [tuple(shape[-2:]) for shape in model.seen] == [(12, 20)] * 2 + [(24, 40)] * 2 + [(48, 80)] * 2
        assert logits.shape == (2, 5, 30, 30)

    def test_windows_slide_over_the_scaled_image(self, images):
        model = Strided()
        segment(model, images, look=Look(window=24, stride=24, scales=(2.0,)))
        assert len(model.seen) == 2 * 4 and {tuple(shape[-2:]) for shape in model.seen} == {(24, 24)}

    def test_an_impossible_class_keeps_a_finite_logit(self):
        class Sure(nn.Module):
            def forward(self, pixel_values):
                return SimpleNamespace(logits=torch.tensor([0.0, 1e4]).view(1, 2, 1, 1).expand(1, 2, 2, 2))

        assert segment(Sure(), torch.zeros(1, 3, 2, 2), look=Look(flip=True)).isfinite().all()


class TestPredict:
    @pytest.mark.parametrize("classes", [1, 16, 17, 40])
    def test_classes_in_parts_give_the_same_map(self, classes):
        logits = torch.randn(2, classes, 6, 9, generator=torch.Generator().manual_seed(2))
        expected = F.interpolate(logits, (25, 31), mode="bilinear", align_corners=False).argmax(1)
        assert torch.equal(argmax_at(logits, (25, 31)), expected)

    def test_the_first_class_wins_a_tie(self):
        assert argmax_at(torch.zeros(1, 40, 2, 2), (2, 2)).unique().tolist() == [0]

    @pytest.mark.parametrize("options", [
        {}, {"window": 16, "stride": 12}, {"scales": (0.5,)}, {"scales": (0.75, 1.5), "flip": True, "window": 20},
    ])  # fmt: skip
    def test_is_the_argmax_of_segment(self, images, options):
        look = Look(**options)
        got = predict(Strided(20), images, (33, 51), look)
        assert torch.equal(got, segment(Strided(20), images, (33, 51), look).argmax(1))

    def test_a_class_ruled_out_by_infinity_is_refused_since_resizing_would_choose_it(self, images):
        class RulingOut(Strided):
            def forward(self, pixel_values):
                logits = super().forward(pixel_values).logits
                logits[:, 1] = -torch.inf
                return SimpleNamespace(logits=logits)

        with pytest.raises(UserError, match="are not finite.*by a large negative number"):
            predict(RulingOut(), images, (33, 51))


class TestLook:
    def test_sizes_are_kept_as_pairs_and_the_stride_is_two_thirds(self):
        assert Look(window=769) == Look((769, 769), (512, 512)) and Look(scales=[1]) == Look()

    def test_either_order_of_resize_is_the_same_look(self):
        assert Look(resize=[1024, 512]) == Look(resize=(512, 1024)) != Look(resize=512)

    def test_protocol_in_words(self):
        assert Look().protocol == "full size" and Look(resize="model").protocol == "the model's own size"
        assert Look((512, 1024), None, (0.75, 1.0), True, (512, 1024)).protocol == (
            "resized into 1024 x 512, windows of 512 x 1024 every 341 x 682, scales 0.75 1, mirrored too"
        )

    @pytest.mark.parametrize("options, message", [
        ({"stride": 4}, "stride is 4, but there is no window to slide"),
        ({"window": 8, "stride": 9}, r"stride \(9, 9\) is larger than window \(8, 8\), which leaves pixels out"),
        ({"window": 32.0}, "window is 32.0; give one positive number of pixels"),
        ({"scales": "1"}, "scales is .'1',.; give one or more positive numbers"),
        ({"window": 0}, "window is 0; give one positive number of pixels"),
        ({"window": (4, 4, 4)}, r"window is \(4, 4, 4\)"),
        ({"window": (4, 4.5)}, r"window is \(4, 4.5\)"),
        ({"scales": ()}, "one or more positive numbers"),
        ({"scales": (1.0, -1)}, "one or more positive numbers"),
        ({"scales": (float("nan"),)}, "one or more positive numbers"),
        ({"resize": "half"}, r"resize is 'half'; give None, \(height, width\) or 'model'"),
        ({"resize": (0, 5)}, r"resize is \(0, 5\)"),
    ])  # fmt: skip
    def test_a_bad_number_is_one_sentence(self, options, message):
        with pytest.raises(UserError, match=message):
            Look(**options)
