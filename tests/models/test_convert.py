"""Published checkpoints of every family become models; what is no such checkpoint gets one sentence."""

import codecs
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.errors import UserError
from hf_fst.models import convert
from tests.tolerance import assert_same_logits, assert_same_weights

from . import reference, reference_transformers
from .reference import Weights
from .tiny import TINY, image, tiny

REFERENCES = {
    "deeplabv2-resnet50": reference.deeplabv2,
    "pspnet-resnet101": reference.pspnet,
    "upernet-swin-base": reference_transformers.upernet_swin,
    "upernet-beit-base": reference_transformers.upernet_beit,
    "deeplabv2-resnet101-semi": reference.semi_deeplabv2,
    "pspnet-resnet101-semi": reference.semi_pspnet,
    "deeplabv3plus-resnet101-cityscapes": reference.semi_deeplabv3plus,
    "deeplabv3plus-resnet101-unimatch": reference.unimatch_deeplabv3plus,
    "dpt-dinov2-small": reference_transformers.unimatch_v2_dpt,
}


def silent(line: str) -> None:
    pass


def pixels(name: str) -> torch.Tensor:
    """Sizes that need neither padded windows nor resized position tables."""
    if name == "upernet-swin-base":
        return torch.randn(2, 3, 128, 256, generator=torch.Generator().manual_seed(1))
    return image(name)[..., :56] if name == "dpt-dinov2-small" else image(name)


def published_state(name: str, salt: float = 1.0) -> Weights:
    """The weights of the tiny network under the names its authors published."""
    weights = Weights(salt)
    REFERENCES[name](weights, pixels(name))
    return weights


def save(path, name: str, teacher: Weights, student: Weights):
    """A file as the training code of each family writes it."""
    teacher, student = OrderedDict(teacher), OrderedDict(student)
    if name.endswith(("-semi", "-cityscapes")):
        states = {
            "model_state": {f"module.{key}": tensor for key, tensor in student.items()},
            "teacher_state": {f"module.{key}": tensor for key, tensor in teacher.items()},
        }
        torch.save({"epoch": 3, "best_miou": np.float64(0.5), "optimizer_state": {}, **states}, path)
    elif name.endswith("-unimatch") or name.startswith("dpt"):
        states = {"model": student, "model_ema": teacher}
        states = {which: {f"module.{key}": tensor for key, tensor in state.items()} for which, state in states.items()}
        torch.save({"epoch": 3, "previous_best": np.float64(78.1), **states}, path)
    else:
        state = {f"model.{key}": tensor for key, tensor in student.items()}
        state |= {f"ema_model.{key}": tensor for key, tensor in teacher.items()}
        state |= {f"imnet_model.{key}": tensor for key, tensor in student.items()}
        torch.save({"meta": {"iter": 40000, "CLASSES": ["road"]}, "state_dict": OrderedDict(state)}, path)
    return path


@pytest.mark.parametrize("name", REFERENCES)
def test_converted_teacher_and_student_give_the_published_logits(name, tmp_path):
    weights = {"teacher": Weights(1.0), "student": Weights(0.9)}
    with torch.no_grad():
        expected = {which: REFERENCES[name](state, pixels(name)) for which, state in weights.items()}
    path = save(tmp_path / "published.pth", name, weights["teacher"], weights["student"])
    for which, (logits, auxiliary_logits) in expected.items():
        lines = []
        model = convert(path, name, which, num_labels=5, report=lines.append, **TINY[name])
        with torch.no_grad():
            output = model(pixels(name))
        scale = logits.abs().max().item()
        torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-4 * scale)
        if auxiliary_logits is None:
            assert output.auxiliary_logits is None
        else:
            auxiliary = output.auxiliary_logits["auxiliary_head"]
            torch.testing.assert_close(auxiliary, auxiliary_logits, rtol=0, atol=1e-4 * auxiliary_logits.abs().max())
        assert which in lines[0] and str(path) in lines[0]
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, model)
    with torch.no_grad():
        assert_same_logits(loaded(pixels(name)).logits, output.logits)


def convert_state(state: dict, tmp_path, name: str = "deeplabv2-resnet50", which: str = "student", **options):
    path = tmp_path / "published.pth"
    torch.save({"state_dict": dict(state)}, path)
    return convert(path, name, which, report=silent, **{"num_labels": 5, **TINY.get(name, {}), **options})


def test_plain_segmentor_fills_a_given_model(tmp_path):
    name = "deeplabv2-resnet50"
    weights = Weights()
    expected, _ = REFERENCES[name](weights, pixels(name))
    path = tmp_path / "published.pth"
    torch.save({"state_dict": dict(weights)}, path)
    model = tiny(name)
    assert convert(path, model, "student", report=silent) is model
    with torch.no_grad():
        torch.testing.assert_close(model(pixels(name)).logits, expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_weights_that_are_not_finite_are_named(tmp_path):
    state = published_state("deeplabv2-resnet50")
    state["backbone.layer1.0.conv1.weight"].view(-1)[3] = float("inf")
    with pytest.raises(UserError, match="1 of the tensors in .*published.pth hold values that are not finite"):
        convert_state(state, tmp_path)


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path):
    state = published_state("deeplabv2-resnet50")
    del state["backbone.layer1.0.conv1.weight"]
    state["backbone.layer9.weight"] = torch.zeros(1)
    state["backbone.layer2.0.bn1.weight"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        convert_state(state, tmp_path)
    message = str(error.value)
    assert "1 missing (backbone.body.layer1.0.conv1.weight)" in message
    assert "1 unexpected (backbone.body.layer9.weight)" in message
    assert "1 of another shape (backbone.body.layer2.0.bn1.weight (3,) for (8,))" in message


def test_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a DeepLabV2 network, not daformer-mit-b0: choose deeplabv2-resnet50"):
        convert_state(published_state("deeplabv2-resnet50"), tmp_path, name="daformer-mit-b0")
    with pytest.raises(ValueError, match="holds none of the networks known here"):
        convert_state({"encoder.weight": torch.zeros(1)}, tmp_path)


def test_another_number_of_classes_is_refused_with_the_number(tmp_path):
    state = published_state("deeplabv2-resnet50")
    with pytest.raises(ValueError, match="has 5 classes, but the model has 19: ask for num_labels=5"):
        convert_state(state, tmp_path, num_labels=None)


def test_missing_teacher_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no teacher, only one network: ask for the student"):
        convert_state(published_state("deeplabv2-resnet50"), tmp_path, which="teacher")
    with pytest.raises(ValueError, match="choose teacher or student"):
        convert(tmp_path, "deeplabv2-resnet50", "both")


def test_published_file_without_teacher_and_with_the_present_of_the_look_ahead_gives_the_student(tmp_path):
    name = "deeplabv2-resnet50"
    student, present = published_state(name), published_state(name, 0.7)
    state = {f"model.{key}": tensor for key, tensor in student.items()}
    state |= {f"{prefix}_model.{key}": tensor for key, tensor in present.items() for prefix in ("pre", "tmp")}
    model = convert_state(state, tmp_path)
    expected, _ = REFERENCES[name](student, pixels(name))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels(name)).logits, expected, rtol=0, atol=1e-4 * expected.abs().max())
    with pytest.raises(ValueError, match="holds no teacher, only one network: ask for the student"):
        convert_state(state, tmp_path, which="teacher")


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "published.pth"
    torch.save({"state_dict": dict(published_state("deeplabv2-resnet50"))}, path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="download it again"):
            convert(path, "deeplabv2-resnet50", "student")


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(zipped, tmp_path):
    path = tmp_path / "published.pth"
    victim = tmp_path / "written"
    if zipped:
        torch.save({"state_dict": Payload(victim)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Payload(victim)}))
    with pytest.raises(ValueError, match="could run code, and is refused"):
        convert(path, "deeplabv2-resnet50", "student")
    assert not victim.exists()


class Calls:
    def __init__(self, function, *arguments):
        self.calls = function, arguments

    def __reduce__(self):
        return self.calls


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(os.system, "true"), r"posix.system"),
        (Calls(eval, "1"), r"\w+.eval"),
        (Calls(codecs.encode, "abc", "rot13"), "the codec 'rot13'"),
        (Calls(codecs.encode, b"a" * 99, "zlib"), "the codec 'zlib'"),
        (Calls(codecs.encode, "abc", "no such codec"), "_codecs.encode"),
        (Calls(codecs.decode, "abc", "latin1"), "_codecs.decode"),
        (torch.nn.Linear(1, 1), r"torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_could_run_code_is_named_whatever_torch_says(monkeypatch, tmp_path, value, named, zipped):
    path = tmp_path / "published.pth"
    torch.save({"state_dict": value, "best": np.float64(1)}, path, _use_new_zipfile_serialization=zipped)
    load = torch.load

    def wordless(*arguments, **options):
        try:
            return load(*arguments, **options)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError from error

    monkeypatch.setattr(torch, "load", wordless)
    with pytest.raises(ValueError, match=rf"besides tensors \(.*{named}.*could run code, and is refused"):
        convert(path, "deeplabv2-resnet50", "student")


@pytest.mark.parametrize(
    "content", [b"<!doctype html><html></html>", bytes(99), b"hello", b"\x80\x02ctorch\nTensor\n)\x81}b."]
)
def test_what_is_no_checkpoint_is_not_called_dangerous(tmp_path, content):
    (tmp_path / "published.pth").write_bytes(content)
    with pytest.raises(ValueError, match="is truncated or not a PyTorch checkpoint"):
        convert(tmp_path / "published.pth", "deeplabv2-resnet50", "student")


def test_other_content_and_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        convert(tmp_path / "absent.pth", "deeplabv2-resnet50")
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not a checkpoint"):
        convert(path, "deeplabv2-resnet50")
    torch.save({"state_dict": {"epoch": 3}}, path)
    with pytest.raises(ValueError, match="holds no weights of a student"):
        convert(path, "deeplabv2-resnet50", "student")
