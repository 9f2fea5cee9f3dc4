"""Started by torchrun from test_distributed.py: labels and predicts on two processes."""

import json
import os
import sys
from pathlib import Path

from hf_fst import cli
from hf_fst.prediction.label import label_collection
from hf_fst.prediction.predict import predict_files

if __name__ == "__main__":
    run_dir, images, shards, work = sys.argv[1:]
    found = {
        "folder": label_collection(run_dir, images, Path(work, "folder"), shard_size=2, progress=False),
        "shards": label_collection(run_dir, shards, Path(work, "shards"), shard_size=2, progress=False),
        "predict": predict_files(run_dir, images, Path(work, "predict"), overlays=True, progress=False),
        "refused": cli.main(["label", run_dir, images, "-o", str(Path(work, "folder")), "--flip"]),
    }
    Path(work, f"found_{os.environ['RANK']}.json").write_text(json.dumps(found))
