"""The files for launchers: accelerate's configs and the SLURM script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import OffloadPolicy
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType

from tests.recipes import tiny

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
SCRIPT = str(ROOT / "examples" / "run_fst.py")
# processes, machines, kind, precision
EXPECTED = {
    "single_gpu": (1, 1, "NO", "bf16"),
    "multi_gpu": (4, 1, "MULTI_GPU", "bf16"),
    "multi_node": (8, 2, "MULTI_GPU", "bf16"),
    "fsdp2": (4, 1, "FSDP", "bf16"),
    "cpu_pair": (2, 1, "MULTI_GPU", "no"),
}


def arguments(name: str, *more: str):
    """What `accelerate launch` makes of a config, without launching."""
    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), *more, SCRIPT, "recipe.yaml"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def test_every_config_is_looked_at():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_config_as_it_is_meant(name):
    processes, machines, kind, precision = EXPECTED[name]
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.distributed_type.value) == (processes, machines, kind)
    assert config.mixed_precision == precision
    args = arguments(name)
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (processes, machines, precision)
    assert (args.multi_gpu, args.use_fsdp) == (kind == "MULTI_GPU", kind == "FSDP")
    assert not (args.cpu or args.use_deepspeed or args.tpu)


def test_words_on_the_command_line_say_more_than_the_config():
    args = arguments("multi_node", "--machine_rank", "1", "--main_process_ip", "10.0.0.7", "--num_processes", "16")
    assert (args.machine_rank, args.main_process_ip, args.num_processes) == (1, "10.0.0.7", 16)


def test_the_fsdp2_config_gives_what_the_trainer_takes(monkeypatch):
    environment = prepare_multi_gpu_env(arguments("fsdp2"))
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert type(plugin.cpu_offload) is OffloadPolicy and plugin.transformer_cls_names_to_wrap is None


# stands for a command of the cluster: notes its words and, for srun, runs them once for each node
STANDS_IN = """#!{python}
import json, os, subprocess, sys
name = os.path.basename(sys.argv[0])
with open({log!r}, "a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "scontrol":
    print("node7\\nnode8")
if name == "srun":
    for node in "01":
        subprocess.run(sys.argv[2:], check=True, env={{**os.environ, "SLURM_NODEID": node}})
"""


def slurm(tmp_path, *words: str, restarts: int = 0) -> list[list[str]]:
    """The words of `accelerate` on each of two nodes."""
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    for name in ("srun", "scontrol", "accelerate"):
        (tmp_path / name).write_text(STANDS_IN.format(python=sys.executable, log=str(log)))
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_ID": "123456",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    script = ROOT / "examples" / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    subprocess.run(["bash", str(script), *words], check=True, env=environment, cwd=ROOT)
    return [entry[1:] for entry in map(json.loads, log.read_text().splitlines()) if entry[0] == "accelerate"]


def test_the_slurm_script_starts_a_launcher_on_each_node_which_find_the_first(tmp_path):
    nodes = slurm(tmp_path, "my recipe.yaml", "--output_dir", str(tmp_path / "run"))
    for rank, words in enumerate(nodes):
        assert words[0] == "launch"
        args = _validate_launch_command(launch_command_parser().parse_args(words[1:]))[0]
        assert (args.num_processes, args.num_machines, args.machine_rank) == (8, 2, rank)
        assert (args.main_process_ip, args.main_process_port) == ("node7", 20000 + 123456 % 20000)
        assert args.training_script == "examples/run_fst.py"
        assert args.training_script_args == ["my recipe.yaml", "--output_dir", str(tmp_path / "run")]
    assert len(nodes) == 2


def test_a_requeued_job_goes_on_from_its_checkpoint_or_starts_again(tmp_path):
    words = ("recipe.yaml", "--output_dir", str(tmp_path / "run"), "--seed", "1")
    assert [node[-1] for node in slurm(tmp_path, *words, restarts=1)] == ["--overwrite"] * 2
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-10" / "complete.json").write_text("{}")
    assert [node[-1] for node in slurm(tmp_path, *words, restarts=2)] == ["--resume"] * 2
    assert [node[-1] for node in slurm(tmp_path, *words)] == ["1"] * 2


@pytest.mark.parametrize("form", ["-o {}", "--output_dir={}", "--output-dir {}", ""])
def test_a_requeued_job_never_overwrites_checkpoints_however_their_directory_is_given(tmp_path, form):
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-10" / "complete.json").write_text("{}")
    words = ["recipe.yaml", *form.format(tmp_path / "run").split()]
    assert [node[-1] for node in slurm(tmp_path, *words, restarts=1)] == ["--resume"] * 2


@pytest.mark.distributed
def test_the_cpu_pair_trains_with_two_processes(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, rule="fst_d", per_device_train_batch_size=1, report=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu_pair.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, SCRIPT, recipe, "-o", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "run" / "fst_run.json").read_text())
    assert facts["cost"]["processes"] == 2
    assert (tmp_path / "run" / "checkpoint-2" / "rng_state_1.pth").is_file()
