"""The cases of gpu.py one by one: networks, steps of the trainer and of a bare loop, loaders, and what is measured."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 19
NETWORKS = ("SegFormer-B0", "SegFormer-B2", "DAFormer-MiT-B5", "DPT-DINOv2-B", "DeepLabV2-R101")
LOADER = "images a second"
#: the forms of a step, and the options of `FSTConfig` that make them
FORMS = {"trainer": {}, "bare": {}, "captured": {"capture": True}, "joint": {"joint_forward": "true"}}
WINDOWS = 3


@dataclass(frozen=True)
class Case:
    """What is measured: `form` of a step with K = `steps` virtual ones at every `every`-th step, for the `round`-th time
    (all but the wall time is measured in round 0); or a loader, whose number of workers is `steps`."""

    network: str
    precision: str
    form: str
    steps: int
    every: int = 1
    round: int = 0

    @property
    def name(self) -> str:
        """For people."""
        if self.network == LOADER:
            return f"{LOADER}, {self.steps} workers"
        rule = f"FST-D, K = {self.steps}" if self.steps else "mean teacher"
        rule += f", M = {self.every}" if self.every > 1 else ""
        return f"{self.network}, {self.precision}, {rule}, {self.form}"


def is_half(case: Case, device: torch.device) -> bool:
    """Whether a case is in half precision; on CPUs, where that takes minutes, none is."""
    return case.precision == "bf16" and device.type == "cuda"


# networks


def make_network(name: str, quick: bool) -> tuple[nn.Module, int]:
    """A network with random weights, and the side of its images in pixels."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from hf_fst.models import build

    torch.manual_seed(0)
    if name.startswith("SegFormer"):
        small = {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256}
        sizes = small if name.endswith("B0") else {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}
        tiny = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8}
        config = SegformerConfig(
            num_labels=CLASSES, **({"decoder_hidden_size": 768} | sizes | (tiny if quick else {}))
        )
        return SegformerForSemanticSegmentation(config), 64 if quick else 512
    builds = {"DAFormer-MiT-B5": "daformer-mit-b5", "DeepLabV2-R101": "deeplabv2-resnet101"}
    quick_builds = {"DAFormer-MiT-B5": "daformer-mit-b0", "DeepLabV2-R101": "deeplabv2-resnet50"}
    if name in builds:
        return build((quick_builds if quick else builds)[name], CLASSES), 64 if quick else 512
    tiny = {"hidden_size": 24, "num_attention_heads": 2}
    narrow = {"backbone_config": tiny, "neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 8}
    overrides = narrow if quick else {}
    return build("dpt-dinov2-base", CLASSES, **overrides), 56 if quick else 518  # patches of 14 pixels


def make_batch(side: int, device: torch.device) -> dict[str, torch.Tensor]:
    """4 labeled and 4 unlabeled images, pinned for a GPU; labels in patches, since ClassMix pastes whole classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, side, side, generator=generator)
    coarse = torch.randint(CLASSES, (4, 1, 8, 8), generator=generator).float()
    labels = nn.functional.interpolate(coarse, size=(side, side)).squeeze(1).long()
    batch = {"pixel_values": pixels[:4].clone(), "labels": labels, "unlabeled_pixel_values": pixels[4:].clone()}
    return {key: value.pin_memory() if device.type == "cuda" else value for key, value in batch.items()}


# measuring


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def synchronizations(device: torch.device) -> Iterator[Counter]:
    """Counts, by the innermost lines of the stack, where the host waits for the GPU inside."""
    where: Counter = Counter()

    def note(message, *args, **kwargs) -> None:
        if "synchronizing" in str(message):
            where[place(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield where
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def place(stack: Iterable[traceback.FrameSummary]) -> str:
    """The five innermost lines of a stack, `file.py:line function`, innermost first; those of this machinery left out."""
    lines = []
    for frame in reversed(list(stack)):
        path = Path(frame.filename)
        if path.name not in ("warnings.py", "gpu.py", "contextlib.py"):
            lines.append(f"{'/'.join(path.parts[-3:])}:{frame.lineno} {frame.name}")
    return " < ".join(lines[:5]) or "this script"


def of_profile(events: Iterable, steps: int) -> dict[str, float | None]:
    """Of a profile over `steps` steps, for each: ms in which a kernel runs, kernels, and launches by the host.

    `events` are those of Kineto: building a profile's own takes seconds.
    """
    spans, kernels, launches = [], 0, 0
    for event in events:
        name = event.name()
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            if event.is_user_annotation() or name.startswith(("ProfilerStep", "Optimizer.")):
                continue  # spans over kernels
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            kernels += not name.startswith(("Memcpy", "Memset"))
        else:
            names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
            launches += name.startswith(names)
    if not spans:
        return {"kernel": None, "kernels": None, "launches": None}
    busy, until = 0, 0
    for start, end in sorted(spans):
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return {"kernel": busy / 1e6 / steps, "kernels": kernels / steps, "launches": launches / steps}


def measured(device: torch.device, case: Case, seconds: float, found: dict) -> Iterator[None]:
    """Measures the steps that are taken between one `next` and another, and puts numbers of a step into `found`.

    Args:
        device: of the step.
        case: whose steps repeat after M.
        seconds: to time for, about; at least one cycle in a window.
        found: for wall (ms), kernel (ms), kernels, launches, waits, where, peak (bytes).
    """
    cycle = case.every
    for _ in range(1 if case.steps else 3):  # a pass is replayed from its third time on
        yield
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    one = time.perf_counter() - start
    windows = WINDOWS if cycle == 1 and 0 < one < seconds / 2 else 1
    steps, walls = cycle * max(1, round(seconds / windows / cycle / one)), []
    for _ in range(windows):
        start = time.perf_counter()
        for _ in range(steps):
            yield
        synchronize(device)
        walls.append((time.perf_counter() - start) * 1000 / steps)
    found["wall"] = statistics.median(walls)
    if case.round:
        return
    if device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated()
    with synchronizations(device) as where:
        for _ in range(cycle):
            yield
    found["where"] = {line: count / cycle for line, count in where.most_common()}
    found["waits"] = sum(where.values()) / cycle if device.type == "cuda" else None
    activity = "CUDA" if device.type == "cuda" else "CPU"
    synchronize(device)
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, activity)]) as profile:
        for _ in range(cycle):
            yield
        synchronize(device)
    found |= of_profile(profile.profiler.kineto_results.events(), cycle)


# the trainer


class Same(Dataset):
    """A batch, again and again."""

    def __init__(self, item: dict[str, torch.Tensor]):
        self.item = item

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(self.item)


def run_trainer(case: Case, network: nn.Module, batch: dict, directory: str, device, steps: Callable) -> dict:
    """Steps of `FSTTrainer`; what the look-ahead holds, in bytes."""
    from transformers import TrainerCallback

    from hf_fst.training.config import FSTConfig
    from hf_fst.training.trainer import FSTTrainer

    class Fed(FSTTrainer):
        def get_train_dataloader(self):
            super().get_train_dataloader()  # the rest of what it makes
            return self.accelerator.prepare(DataLoader(Same(batch), batch_size=None))

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            control.should_training_stop = next(taken, "done") == "done"

    options = {"rule": "fst_d", "lookahead_steps": case.steps} if case.steps else {"rule": "mean_teacher"}
    if case.every > 1:
        options["lookahead_every"] = case.every
    config = FSTConfig(
        output_dir=directory,
        objective="class_mix",
        per_device_train_batch_size=4,
        max_steps=100_000,
        learning_rate=6e-5,
        bf16=is_half(case, device),
        use_cpu=device.type == "cpu",
        seed=0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        report=False,
        disable_tqdm=True,
        **options,
        **FORMS[case.form],
    )
    one = {key: value[0] for key, value in batch.items()}
    labeled, unlabeled = Same({k: one[k] for k in ("pixel_values", "labels")}), None
    unlabeled = Same({"pixel_values": one["unlabeled_pixel_values"]})
    taken = steps()
    trainer = Fed(network, config, train_dataset=labeled, unlabeled_dataset=unlabeled, callbacks=[Clock()])
    trainer.train()
    return {"held": trainer.lookahead_memory()}


# the bare loop


def run_bare(case: Case, student: nn.Module, batch: dict, directory: str, device, steps: Callable) -> dict:
    """The same passes with the same losses, mixing and augmentation, written out without trainer, rules or checks."""
    from hf_fst.evaluation.inference import aligns_corners
    from hf_fst.method.augmentation import StrongAugmentation
    from hf_fst.method.losses import cross_entropy, pseudo_labels
    from hf_fst.method.mixing import class_mask, mix

    student.to(device).train()
    teacher = deepcopy(student).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=6e-5, weight_decay=0.0, fused=True)
    augment, align = StrongAugmentation(0.8, 0.2, 0.5), aligns_corners(student)
    parameters, buffers = list(student.parameters()), list(student.buffers())
    followers, their_buffers = list(teacher.parameters()), list(teacher.buffers())
    kept: list[torch.Tensor] = []

    def autocast():
        return torch.autocast(device.type, torch.bfloat16) if is_half(case, device) else nullcontext()

    def follow() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(followers, parameters, 0.001)
            if buffers:
                torch._foreach_copy_(their_buffers, buffers)

    def present() -> list[torch.Tensor]:
        state = [value for state in optimizer.state.values() for value in state.values()]
        return [*parameters, *buffers, *state]

    def learn(pixels, labels, unlabeled) -> None:
        with torch.no_grad(), autocast():
            pseudo, confidence = pseudo_labels(teacher(unlabeled).logits.float(), unlabeled.shape[-2:], align)
            mask = class_mask(labels, CLASSES)
            mixed, mixed_labels = augment(mix(mask, pixels, unlabeled)), mix(mask, labels, pseudo)
            quality = (confidence >= 0.968).float().mean()
            weight = mix(mask, torch.ones_like(confidence), quality.expand_as(confidence))
        for images, target, weights in ((pixels, labels, None), (mixed, mixed_labels, weight)):
            with autocast():
                logits = student(images).logits
            cross_entropy(logits.float(), target, target.numel(), weights, align).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for number, _ in enumerate(steps()):
        images = [batch[key].to(device, non_blocking=True) for key in batch]
        follow()
        if case.steps and number % case.every == 0:
            with torch.no_grad():
                now = present()
                kept = kept if len(kept) == len(now) else [torch.empty_like(t) for t in now]
                torch._foreach_copy_(kept, now)
            for _ in range(case.steps):
                learn(*images)
                follow()
            with torch.no_grad():
                torch._foreach_copy_(now, kept)
        learn(*images)
    return {}


# the loader


def run_loader(workers: int, quick: bool) -> dict:
    """Images a second of the training pipeline: JPEG of 2048x1024 pixels to half size, crop, flip, normalize."""
    import datasets
    from PIL import Image

    from hf_fst.data.labels import LabelMap
    from hf_fst.data.pairing import Pairs, collate
    from hf_fst.data.transforms import training
    from hf_fst.data.views import View

    generator, width = torch.Generator().manual_seed(0), 256 if quick else 2048

    def encoded(mode: str, kind: str) -> bytes:
        coarse = torch.randint(256 if mode == "RGB" else CLASSES, (32, 64, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(coarse.numpy()) if mode == "RGB" else Image.fromarray(coarse[..., 0].numpy())
        resample = Image.Resampling.BICUBIC if mode == "RGB" else Image.Resampling.NEAREST
        picture.resize((width, width // 2), resample).save(buffer := io.BytesIO(), kind)
        return buffer.getvalue()

    def images(**columns) -> datasets.Dataset:
        made = {name: [{"bytes": encoded(*how), "path": None} for _ in range(8)] for name, how in columns.items()}
        types = {"image": datasets.Image(), "label": LabelMap(names=[str(i) for i in range(CLASSES)])}
        return datasets.Dataset.from_dict(made, datasets.Features({name: types[name] for name in made}))

    crop, scale = (64, (128, 64)) if quick else (512, (1024, 512))
    transform = training(crop, scale=scale)
    labeled = View(images(image=("RGB", "JPEG"), label=("L", "PNG")), transform)
    pairs = Pairs(labeled, View(images(image=("RGB", "JPEG")), transform), multiple_of=4)
    draws = range(40 if quick else 100_000)
    loader = iter(DataLoader(pairs, 4, sampler=draws, collate_fn=collate, num_workers=workers))
    for _ in range(max(1, workers)):
        next(loader)  # workers start
    start, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["pixel_values"]) + len(batch["unlabeled_pixel_values"])
        if time.perf_counter() - start > 3:
            break
    return {"images_per_second": count / (time.perf_counter() - start)}


# any case


def run_case(case: Case, device: torch.device, quick: bool) -> dict:
    """The numbers of a case."""
    if case.network == LOADER:
        return run_loader(min(case.steps, 2) if quick else case.steps, quick)
    network, side = make_network(case.network, quick)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: dict = {}
    runs = run_bare if case.form == "bare" else run_trainer
    with tempfile.TemporaryDirectory() as directory:
        batch = make_batch(side, device)
        found |= runs(
            case,
            network,
            batch,
            directory,
            device,
            lambda: measured(device, case, 0.0 if quick else 1.5, found),
        )
    return found
