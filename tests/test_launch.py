"""Launchers: processes on this machine, and the files for clusters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lumos.data.records import RecordWriter
from lumos.errors import UserError
from lumos.launch import local
from lumos.launch.spec import make_job
from lumos.launch.submit import CLUSTERS, submit_job
from lumos.runtime import processes

ROOT = Path(__file__).resolve().parents[1]
VERB = ["train", "--config=configs/lumos_1b.py", "--workdir=/mnt/runs/a run"]


def _text(cluster, topology, **options):
    return CLUSTERS[cluster][0](make_job("my-run", topology, VERB, **options))


@pytest.mark.parametrize(
    "cluster, topology, options",
    [
        ("slurm", "h100:64", {}),
        ("slurm", "h100:64", {"per": "gpu"}),
        ("slurm", "h100:4", {}),
        ("tpu-vm", "v5p:8x8x4", {}),
    ],
)
def test_scripts_are_valid_shell(cluster, topology, options, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(_text(cluster, topology, **options))
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "'--workdir=/mnt/runs/a run'" in path.read_text()  # quoted
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=error", str(path)], check=True)


def test_jobs_install_jax_for_their_devices():
    for text, extra in ((_text("slurm", "h100:8"), "gpu"), (_text("skypilot", "v5e:4x4"), "tpu")):
        assert f"pip install --quiet 'lumos-video[{extra}]'\n" in text
    assert "lumos-video" not in _text("slurm", "h100:8", setup="source venv/bin/activate")


def test_slurm_starts_one_process_per_node_or_per_gpu():
    node, gpu = _text("slurm", "h100:64"), _text("slurm", "h100:64", per="gpu")
    for text in (node, gpu):
        assert "#SBATCH --nodes=8\n" in text and "#SBATCH --gpus-per-node=8\n" in text and "#SBATCH --requeue" in text
        assert "scontrol requeue" in text and "trap 'kill -TERM $step' TERM" in text
        assert "LUMOS_NUM_DEVICES=64 lumos train" in text  # refuses to train as an island
    assert "--ntasks-per-node=1\n" in node and "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in node
    assert "--ntasks-per-node=8\n" in gpu and "JAX_LOCAL_DEVICE_IDS" not in gpu


def test_the_slurm_script_forwards_sigterm_and_requeues(tmp_path):
    """Run the script with stand-ins for the cluster's commands."""
    marks = tmp_path / "marks"
    tools = {
        "scontrol": f'if [ "$1" = requeue ]; then echo requeued >> {marks}; else echo node0; fi',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "lumos": f"trap 'echo saved >> {marks}; exit 75' TERM; echo $JAX_PROCESS_ID/$JAX_NUM_PROCESSES >> {marks}; kill -TERM $PPID; "
        "while true; do sleep 0.05; done",
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(CLUSTERS["slurm"][0](make_job("my-run", "h100:8", VERB, setup="true")))
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"
    }  # fmt: skip
    done = subprocess.run(["bash", str(script)], env=environment, timeout=60, check=False)
    assert done.returncode == 75
    assert marks.read_text().split() == ["0/1", "saved", "requeued"]


@pytest.mark.parametrize("topology, slices, hosts, resource, count", [
    ("v5p:8x8x4", 1, 64, "google.com/tpu", 4), ("2*v5e:16x16", 2, 64, "google.com/tpu", 4), ("v6e:2x4", 1, 1, "google.com/tpu", 8), ("h100:32", 1, 4, "nvidia.com/gpu", 8)
])  # fmt: skip
def test_the_jobset_has_the_shape_of_the_topology(topology, slices, hosts, resource, count):
    jobset = yaml.safe_load(_text("gke", topology, image="repo/lumos:1"))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (group,) = jobset["spec"]["replicatedJobs"]
    spec = group["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert group["replicas"] == slices and spec["parallelism"] == spec["completions"] == hosts
    assert container["resources"]["limits"] == {resource: count} and container["image"] == "repo/lumos:1"
    assert pod["restartPolicy"] == "Never" and jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert container["args"][0].splitlines()[-1].startswith("exec env LUMOS_NUM_DEVICES=")
    names = {variable["name"] for variable in container.get("env", [])}
    assert ("JAX_COORDINATOR_ADDRESS" in names) == (resource == "nvidia.com/gpu")
    if resource == "google.com/tpu":
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]


def test_the_skypilot_task_recovers_from_preemption():
    task = yaml.safe_load(_text("skypilot", "h100:32"))
    assert task["num_nodes"] == 4 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"] and "SKYPILOT_NODE_RANK" in task["run"]
    tpu = yaml.safe_load(_text("skypilot", "v5e:4x4"))
    assert tpu["resources"]["accelerators"] == "tpu-v5litepod-16:1" and "LUMOS_CLUSTER=tpu" in tpu["run"]


@pytest.mark.parametrize("cluster, topology, message", [
    ("slurm", "v5e:4x4", "GPUs"), ("tpu-vm", "h100:8", "TPUs"), ("tpu-vm", "2*v5e:4x4", "one slice"), ("gke", "h100:8", "--image"), ("gke", "h100:9", "whole nodes"), ("slurm", "h900:8", "expected chip")
])  # fmt: skip
def test_what_does_not_go_together_is_refused(cluster, topology, message):
    with pytest.raises(UserError, match=message):
        _text(cluster, topology)


def test_unknown_clusters_and_missing_verbs_are_refused():
    with pytest.raises(UserError, match="slurm, gke, tpu-vm, skypilot"):
        submit_job(make_job("a", "h100:8", VERB), "pbs", dry_run=True)
    with pytest.raises(UserError, match="behind --"):
        make_job("a", "h100:8", [])
    with pytest.raises(UserError, match="--name"):
        make_job("My Run", "h100:8", VERB)


@pytest.mark.parametrize("environ, cluster", [
    ({}, ""), ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "flags"), ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "slurm"), ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}, ""),
    ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "4"}, ""), ({"OMPI_COMM_WORLD_SIZE": "2"}, "open mpi"), ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"), ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
    ({"LUMOS_CLUSTER": "tpu"}, "tpu"), ({"JOBSET_NAME": "a", "JOB_COMPLETION_INDEX": "0"}, "jobset"),
])  # fmt: skip
def test_clusters_are_told_apart(environ, cluster):
    assert processes.started_by(environ) == cluster


def test_a_wrong_number_of_devices_is_refused(monkeypatch):
    import jax

    monkeypatch.delenv("LUMOS_NUM_DEVICES", raising=False)
    processes.census()
    monkeypatch.setenv("LUMOS_NUM_DEVICES", str(jax.device_count()))
    processes.census()
    monkeypatch.setenv("LUMOS_NUM_DEVICES", "12")
    with pytest.raises(UserError, match="LUMOS_NUM_DEVICES=12"):
        processes.census()


def test_the_first_failure_stops_the_others_and_gives_the_code(capfd):
    code = local.run(["frobnicate"], num_processes=2, devices_per_process=1)
    assert code == 2
    out = capfd.readouterr().out
    assert "] lumos: error: unknown command 'frobnicate'" in out  # the second may be stopped before it says so too


def _write_tokens(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        with RecordWriter(folder / f"{name}.array_record") as writer:
            for i in range(16):
                grid = rng.integers(0, 1000, (3, 4, 4)).astype(np.uint32)
                writer.write({"tokens": grid, "caption": f"a red circle {i}", "id": f"{name}/{i}"})
    manifest = {"grid": [3, 4, 4], "codebook_size": 1000, "tokenizer": {"fingerprint": None}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _train(workdir, tokens, num_processes, *options):
    verb = ["train", "--config=configs/transformer_small.py:1m,smoke", f"--workdir={workdir}", f"--config.data.path={tokens}",
            "--config.data.batch_size=4", "--config.train.num_steps=3", "--config.train.log_every=1", "--config.train.num_samples=0",
            "--config.train.eval_batches=1", *options]  # fmt: skip
    command = [sys.executable, "-m", "lumos"]
    if num_processes > 1:
        command += [
            "launch",
            "--local",
            f"--num_processes={num_processes}",
            f"--devices_per_process={4 // num_processes}",
            "--",
        ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run([*command, *verb], cwd=ROOT, env=environment, check=True, timeout=900)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_processes, options",
    [
        (2, []),
        (4, []),
        (4, ["--config.mesh.tensor=2"]),  # two processes split the tensors of the same rows
        (4, ["--config.mesh.context=4", "--config.mesh.fsdp=1"]),
    ],
)
def test_several_processes_train_like_one(tmp_path, num_processes, options):
    _write_tokens(tmp_path / "tokens")
    one = _train(tmp_path / "one", tmp_path / "tokens", 1)
    many = _train(tmp_path / "many", tmp_path / "tokens", num_processes, *options)
    assert [step for step, _ in one] == [step for step, _ in many] == [1, 2, 3]
    assert max(abs(a - b) for (_, a), (_, b) in zip(one, many)) <= 1e-6


@pytest.mark.slow
def test_two_processes_tokenize_like_one(tmp_path):
    """Each writes its own shards, here one of two."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}

    def lumos(*arguments):
        subprocess.run([sys.executable, "-m", "lumos", *arguments], cwd=ROOT, env=environment, check=True, timeout=600)

    config = ["--config=configs/demo.py:tokenizer,smoke", f"--config.data.path={tmp_path / 'shapes'}"]
    lumos("data", "shapes", *config)
    lumos("train", *config, f"--workdir={tmp_path / 'run'}", "--config.train.num_samples=0")
    tokenize = ["tokenize", *config, f"--workdir={tmp_path / 'run'}"]
    lumos(*tokenize, f"--out={tmp_path / 'one'}")
    lumos("launch", "--local", "--num_processes=2", "--devices_per_process=1", "--", *tokenize, f"--out={tmp_path / 'two'}")  # fmt: skip
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.array_record")} for name in ("one", "two"))
    assert len(one) == 2 and one == two
    assert (tmp_path / "two" / "manifest.json").exists()
