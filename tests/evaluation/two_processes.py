"""Started by torchrun from test_distributed.py: counts the same images in every way, and writes what each rank got."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from hf_fst.evaluation import ConfusionMatrix
from hf_fst.evaluation.boundary import BoundaryIoU
from hf_fst.evaluation.inference import Look
from hf_fst.evaluation.runner import evaluate_model
from tests.evaluation.conftest import make_dataset

COUNT = 7  # no multiple of processes or batches: the last batches are padded with images that came before


def maps():
    generator = torch.Generator().manual_seed(0)
    predictions, labels = torch.randint(0, 5, (2, COUNT, 24, 31), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return predictions, labels


def count_in_every_way(accelerator, run_dir, data_dir):
    rank, world = accelerator.process_index, accelerator.num_processes
    predictions, labels = maps()
    found = {}
    sharded, rims = ConfusionMatrix(5), BoundaryIoU(5)
    for index in range(rank, COUNT, world):
        sharded.update(predictions[index : index + 1], labels[index : index + 1])
        rims.update(predictions[index : index + 1], labels[index : index + 1])
    found["sharded"] = [sharded.reduce().tolist(), sharded.reduce().tolist()]
    found["boundary"] = rims.compute()
    for batch_size in (1, 2, 3):
        loader = accelerator.prepare(DataLoader(TensorDataset(predictions, labels), batch_size=batch_size))
        gathered = ConfusionMatrix(5, gather=accelerator.gather_for_metrics)
        padded = 0
        for batch in loader:
            gathered.update(*batch)
            padded += len(batch[0])
        total = accelerator.reduce(torch.tensor(padded)).item()
        found[f"gathered {batch_size}"] = [gathered.reduce().tolist(), gathered.images, total]
    for name, options in {
        "whole": {"batch_size": 2},
        "sliding": {"look": Look(window=32, stride=24), "batch_size": 3},
    }.items():
        out = Path(data_dir, f"out_{world}_{name}")
        options |= {"output_dir": out, "save_predictions": True, "boundary": True, "progress": False}
        result = evaluate_model(run_dir, make_dataset_once(accelerator, data_dir), **options)
        found[name] = [result["confusion_matrix"], result["images"], result["mean_boundary_iou"]]
    return found


def make_dataset_once(accelerator, data_dir):
    with accelerator.main_process_first():
        return make_dataset(Path(data_dir))


if __name__ == "__main__":
    run_dir, data_dir = sys.argv[1:]
    accelerator = Accelerator(cpu=True)
    found = count_in_every_way(accelerator, run_dir, data_dir)
    Path(data_dir, f"found_{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()
