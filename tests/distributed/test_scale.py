"""SegFormer, SyncBatchNorm and FSDP2 on two processes (CPU), against one process, DDP, and runs without a break."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SegformerForSemanticSegmentation

from tests.distributed import scale
from tests.processes import on_two

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")


def distance(first: dict, second: dict) -> float:
    """Largest absolute difference between two dicts of tensors of the same names."""
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def parameters(tensors: dict) -> dict:
    """Without the buffers of BatchNorm."""
    ends = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ends)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where two processes wrote what they hold."""
    directory = tmp_path_factory.mktemp("two")
    on_two("tests.distributed.scale", directory)
    return directory


@pytest.fixture(scope="module")
def two(directory):
    """What each of the processes holds."""
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What a single process holds that sees all images and has ordinary BatchNorm."""
    results = {}
    for name, (rule, accumulation, buffers) in scale.SYNCHRONISED.items():
        directory = tmp_path_factory.mktemp("one")
        network = scale.segformer(noise=False)
        run = scale.trainer(directory, network, rule, accumulation, sync_batchnorm=True, teacher_buffers=buffers)
        run.train()
        results[name] = scale.held(run)
    return results


@pytest.mark.parametrize("run", [f"{name} x{n}" for name in scale.SEGFORMER_RULES for n in (1, 2)])
def test_processes_hold_the_same_segformer_with_void_dropout_momentum_clipping_and_a_padded_last_group(two, run):
    """Weights and buffers, student and teacher, bit for bit; buffers are those of the first process's images.

    The exceptions, that one process with all images gives other numbers here: BatchNorm normalises by a process's own
    images, and dropout and stochastic depth are drawn for a process's own micro-batch.
    """
    first, second = (held["segformers"][run] for held in two)
    for network in ("student", "teacher"):
        assert distance(first[network], second[network]) == 0
    assert max(first["norms"]) > 0.3, "nothing was clipped"
    assert all(loss > 0 for loss in first["unlabeled"]), "the teacher had no say"
    assert first["metrics"] == pytest.approx(second["metrics"], nan_ok=True)
    moved = parameters(scale.whole(scale.segformer()))
    assert distance(parameters(first["student"]), moved) > 1e-3


def test_processes_hold_the_same_adapters_and_one_base_each(two):
    first, second = (held["adapters"] for held in two)
    for network in ("student", "teacher"):
        assert distance(first[network], second[network]) == 0
    assert first["shared"] == first["frozen"] and len(first["shared"]) > 20
    assert distance(first["student"], first["teacher"]) > 1e-4


@pytest.mark.parametrize("run", scale.SYNCHRONISED)
def test_with_synchronised_batchnorm_two_processes_of_two_images_are_one_of_four_without_dropout(two, one, run):
    """The kernel is PyTorch's for GPUs alone; here it is replaced by the same sums, so that all around it is tested."""
    synchronised = two[0]["synchronised"][run]
    assert synchronised["layers"] == ["SyncBatchNorm"] and min(synchronised["unlabeled"]) > 0
    for network in ("student", "teacher"):
        assert distance(synchronised[network], one[run][network]) < 1e-10
        assert distance(synchronised[network], two[1]["synchronised"][run][network]) == 0
    assert synchronised["metrics"] == pytest.approx(one[run]["metrics"], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("rule", scale.SHARDED_RULES)
def test_fsdp2_is_ddp(two, rule, accumulation):
    for held in two:
        ddp, fsdp2 = (held["sharded"][f"{rule} x{accumulation} {way}"] for way in ("ddp", "fsdp2"))
        for network in ("student", "teacher"):
            assert distance(ddp[network], fsdp2[network]) < 1e-12
        assert ddp["norms"] == pytest.approx(fsdp2["norms"], abs=1e-12) and max(ddp["norms"]) > 0.3
        assert ddp["unlabeled"] == pytest.approx(fsdp2["unlabeled"], abs=1e-12) and min(ddp["unlabeled"]) > 0
        assert ddp["metrics"] == pytest.approx(fsdp2["metrics"], abs=1e-12, nan_ok=True)


def test_fsdp2_is_ddp_for_segformer_with_batchnorm(two):
    for held in two:
        ddp, fsdp2 = held["sharded"]["segformer ddp"], held["sharded"]["segformer fsdp2"]
        assert min(fsdp2["unlabeled"]) > 0
        for network in ("student", "teacher"):
            assert distance(ddp[network], fsdp2[network]) < 1e-10


def test_the_teacher_is_sharded_like_the_student(two):
    shards = [held["sharded"]["segformer fsdp2"]["shards"] for held in two]
    for student, teacher in shards:
        assert student == teacher and None not in student
    # together the two processes hold each weight once
    for first, second, tensor in zip(shards[0][1], shards[1][1], scale.segformer().parameters(), strict=True):
        assert first[0] + second[0] == tensor.shape[0] and first[0] > 0
    assert set(two[0]["sharded"]["segformer ddp"]["shards"][1]) == {None}


def test_under_bf16_shards_and_average_are_float32_and_stay_near(two):
    for held in two:
        full, autocast = held["half"]["float32 fsdp2"], held["half"]["bf16 fsdp2"]
        assert autocast["dtypes"] == ["torch.float32"]
        start = {name: tensor.float() for name, tensor in scale.whole(scale.segformer()).items()}
        for network in ("student", "teacher"):
            apart = distance(parameters(full[network]), parameters(autocast[network]))
            moved = distance(parameters(full[network]), parameters(start))
            assert 0 < apart < moved / 2
            # the same roundings as under DDP, but for those that a last digit of the clipping's norm tips over
            assert distance(autocast[network], held["half"]["bf16 ddp"][network]) < apart / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_run_goes_on_bit_for_bit(two, kind):
    for held in two:
        uninterrupted, resumed = (held["checkpoints"][f"{kind} {which}"] for which in ("whole", "resumed"))
        for network in ("student", "teacher"):
            assert distance(uninterrupted[network], resumed[network]) == 0
        assert uninterrupted["metrics"] == pytest.approx(resumed["metrics"], nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_a_sharded_run_is_loaded(two, kind):
    first, second = (held["checkpoints"][f"{kind} best"] for held in two)
    for network in ("student", "teacher"):
        assert distance(first[network], second[network]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where, network", [("export", "teacher"), ("export/student", "student"), ("", "teacher")])
def test_what_a_sharded_run_exports_is_an_ordinary_checkpoint(directory, two, kind, where, network):
    path = directory / "checkpoints" / kind / where
    if not where:
        # the output directory itself: the resumed run wrote no report, so it is still the whole run's
        assert (path / "README.md").is_file() and (path / "samples.png").is_file()
    loaded = SegformerForSemanticSegmentation.from_pretrained(path, dtype=torch.float64)
    assert loaded.config.architectures == ["SegformerForSemanticSegmentation"]
    assert distance(scale.whole(loaded), two[0]["checkpoints"][f"{kind} whole"][network]) == 0


def test_two_nodes_of_one_process_are_one_node_of_two(two, tmp_path):
    """Two launchers on loopback that find each other, as on two machines with a directory that both see."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words, "--node_rank", str(rank), "-m"]
            + ["tests.distributed.scale", str(tmp_path), "pair"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=400)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-3000:]
    for rank in (0, 1):
        nodes_hold = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["pair"]
        for run, held in two[rank]["pair"].items():
            for network in ("student", "teacher"):
                assert distance(nodes_hold[run][network], held[network]) == 0
            assert nodes_hold[run]["metrics"] == pytest.approx(held["metrics"], nan_ok=True)
    assert (tmp_path / "pair" / "fst_d" / "checkpoint-4" / "complete.json").is_file()


def test_what_cannot_be_is_refused_with_what_to_do(two):
    said = two[0]["refused"]
    assert said == {
        "fsdp1": (
            "FSDP1 flattens the weights of student and teacher differently, so they cannot be averaged; set "
            "fsdp_version: 2 in the accelerate config."
        ),
        "offloaded": (
            "FSDP2 with weights offloaded to the CPU is not supported: a look-ahead copies them several times a step; "
            "set fsdp_offload_params: false in the accelerate config."
        ),
        "adapters": (
            "Student and teacher share the frozen weights under the adapters, which FSDP2 would shard twice; train "
            "adapters with DDP."
        ),
        "evaluation first": "Under FSDP2 scores come while or after training; score a checkpoint on one process.",
    }
