"""Launchers: processes on this machine, and the files for clusters."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from lumos import cli
from lumos.data.records import RecordWriter
from lumos.errors import UserError
from lumos.launch import local
from lumos.launch.spec import make_job
from lumos.launch.submit import CLUSTERS, submit_job
from lumos.runtime import processes

ROOT = Path(__file__).resolve().parents[1]
VERB = ["train", "--config=configs/lumos_1b.py", "--workdir=/mnt/runs/a run"]


def _text(cluster, topology, cluster_of_job="", **options):
    return CLUSTERS[cluster][0](make_job("my-run", topology, VERB, cluster_of_job, **options))


@pytest.mark.parametrize(
    "cluster, topology, options",
    [
        ("slurm", "h100:64", {}),
        ("slurm", "h100:64", {"per": "gpu"}),
        ("slurm", "h100:4", {}),
        ("slurm", "h100:8", {"image": "repo/lumos:1", "mounts": ["/data:/data"]}),
        ("tpu-vm", "v5p:8x8x4", {"setup": "true"}),
    ],
)
def test_scripts_are_valid_shell(cluster, topology, options, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(_text(cluster, topology, **options))
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "'--workdir=/mnt/runs/a run'" in path.read_text()  # quoted
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=error", str(path)], check=True)


def test_jobs_bring_lumos_along(tmp_path):
    """From a wheel, an image, the environment of the launcher where hosts share its folders, or as the user says."""
    wheel = tmp_path / "lumos_video-0.1.0-py3-none-any.whl"
    wheel.touch()
    options = {"wheel": str(wheel)}
    assert f"pip install --quiet '{wheel}[gpu]'\n" in _text("slurm", "h100:8", **options)
    task = yaml.safe_load(_text("skypilot", "v5e:4x4", **options))
    assert task["setup"] == "pip install --quiet '/tmp/lumos/lumos_video-0.1.0-py3-none-any.whl[tpu]'\n"
    assert task["file_mounts"] == {"/tmp/lumos/lumos_video-0.1.0-py3-none-any.whl": str(wheel)}
    script = _text("tpu-vm", "v5e:4x4", **options)
    assert (
        f"tpu tpu-vm scp {wheel} " in script
        and "pip install --quiet 'lumos_video-0.1.0-py3-none-any.whl[tpu]'" in script
    )
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"\n' in _text("slurm", "h100:8")
    assert "pip install" not in _text("slurm", "h100:8", setup="source venv/bin/activate")
    for cluster in ("tpu-vm", "skypilot"):
        with pytest.raises(UserError, match="no package registry: give --wheel=dist/"):
            _text(cluster, "v5e:4x4")


def test_slurm_options_arrays_and_containers(tmp_path):
    options = {
        "partition": "gpu",
        "account": "video",
        "qos": "low",
        "array": "0-7%1",
        "sbatch": ["--mem=0", "--constraint=ib"],
    }
    text = _text("slurm", "h100:16", cluster_of_job="slurm", **options)
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    for option in (
        "--partition=gpu",
        "--account=video",
        "--qos=low",
        "--array=0-7%1",
        "--mem=0",
        "--constraint=ib",
        "--output=my-run-%A_%a.log",
    ):
        assert option in lines
    wheel = tmp_path / "lumos_video-0.1.0-py3-none-any.whl"
    wheel.touch()
    text = _text("slurm", "h100:16", image="repo/lumos:1", mounts=["/data:/data", "/runs:/runs"], wheel=str(wheel))
    assert (
        f"srun --container-image=repo/lumos:1 --container-mounts=/data:/data,/runs:/runs,{tmp_path}:{tmp_path} --kill"
        in text
    )
    inside = text[text.index("bash -c '") : text.index("' start")]
    assert "pip install --quiet" in inside and text.count("pip install") == 1  # within the container alone


@pytest.mark.parametrize("cluster, options, message", [
    ("gke", {"partition": "gpu"}, "--partition is for --cluster=slurm, not gke"), ("slurm", {"queue": "a"}, "--queue is for --cluster=gke"),
    ("gke", {"image": "a b"}, "--image='a b' must be one word"), ("slurm", {"partition": "a\n#SBATCH --x"}, "--partition=.* must be one word"),
    ("slurm", {"sbatch": ["mem=0"]}, "must be an option of sbatch"), ("slurm", {"array": "all"}, "--array='all' must be a number of jobs"),
    ("slurm", {"mounts": ["/a"]}, "must be HOST:CONTAINER"), ("slurm", {"mounts": ["/a:/b"]}, "give --image too"),
    ("gke", {"volume": ["claim:runs"]}, "must be CLAIM:FOLDER"), ("slurm", {"wheel": "x.whl"}, "run make wheel"),
    ("slurm", {"wheel": "lumos_video-1-py3-none-any.whl"}, "no such file; run make wheel"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(cluster, options, message):
    with pytest.raises(UserError, match=message):
        _text(cluster, "h100:8", cluster_of_job=cluster, **options)


def test_slurm_starts_one_process_per_node_or_per_gpu():
    node, gpu = _text("slurm", "h100:64"), _text("slurm", "h100:64", per="gpu")
    for text in (node, gpu):
        assert "#SBATCH --nodes=8\n" in text and "#SBATCH --gpus-per-node=8\n" in text and "#SBATCH --requeue" in text
        assert "scontrol requeue" in text and "trap 'kill -TERM $step' TERM" in text
        assert "LUMOS_NUM_DEVICES=64 lumos train" in text  # refuses to train as an island
    assert "--ntasks-per-node=1\n" in node and "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in node
    assert "--ntasks-per-node=8\n" in gpu and "JAX_LOCAL_DEVICE_IDS" not in gpu


def test_an_array_of_jobs_shares_the_cells_of_a_sweep(capsys):
    sweep = ["sweep", "--workdir=/mnt/run", "--out=/mnt/sweep", "--set=generate.steps=8,16"]
    text = CLUSTERS["slurm"][0](make_job("my-run", "h100:8", sweep, array="16"))
    assert "#SBATCH --array=0-15\n" in text and "--output=my-run-%A_%a.log\n" in text
    assert "--array" not in _text("slurm", "h100:8") and "--output=my-run-%j.log\n" in _text("slurm", "h100:8")
    command = ["launch", "--cluster=slurm", "--array=16", "--name=my-run", "--dry_run", "--", *sweep]
    assert cli.main(command) == 0 and capsys.readouterr().out == text
    for more, message in ((["--cluster=gke"], "for --cluster=slurm"), (["--array=some"], "a number of jobs")):
        assert cli.main([*command[:5], *more, *command[5:]]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="must share their work"):
        make_job("my-run", "h100:8", VERB, array="2")


def test_processes_of_one_host_that_work_apart_take_a_gpu_each(monkeypatch):
    before = jax.config.read("jax_cuda_visible_devices")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    processes.keep_apart()
    assert jax.config.read("jax_cuda_visible_devices") == before  # one process has all of them
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    try:
        processes.keep_apart()
        assert jax.config.read("jax_cuda_visible_devices") == "3"
    finally:
        jax.config.update("jax_cuda_visible_devices", before)


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


def test_jobsets_have_the_fields_of_kubernetes():
    """Queue, account and volumes are where Kueue and Kubernetes look for them, and an argument of several lines stays one."""
    options = {"queue": "video", "service_account": "trainer", "volume": ["runs-claim:/mnt/runs", "data:/mnt/data"]}
    job = make_job(
        "my-run", "h100:16", [*VERB, "--config.name=two\nlines: 'of' \"text\""], "gke", image="repo/lumos:1", **options
    )
    jobset = yaml.safe_load(CLUSTERS["gke"][0](job))
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "video"}
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == "trainer"
    assert {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]} == {
        "volume-0": "runs-claim",
        "volume-1": "data",
    }
    assert {v["name"]: v["mountPath"] for v in container["volumeMounts"]} == {
        "volume-0": "/mnt/runs",
        "volume-1": "/mnt/data",
    }
    words = shlex.split(container["args"][0].split("exec ")[1])
    assert words[-1] == "--config.name=two\nlines: 'of' \"text\""
    _check_fields(jobset, JOBSET, "jobset")


# From the definitions of JobSet (v1alpha2), Job (batch/v1) and Pod (v1): the fields that we write, and what they may be.
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"}, "kind": {"JobSet"}, "metadata": {"name": str, "labels": dict, "annotations": dict},
    "spec": {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "failurePolicy": {"maxRestarts": int, "restartStrategy": {"Recreate", "BlockingRecreate"}, "rules": [{
            "name": str, "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}, "targetReplicatedJobs": list,
            "onJobFailureReasons": [{"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}],
        }]},
        "suspend": bool, "ttlSecondsAfterFinished": int,
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"metadata": dict, "spec": {
            "parallelism": int, "completions": int, "completionMode": {"Indexed", "NonIndexed"}, "backoffLimit": int,
            "podFailurePolicy": {"rules": [{"action": {"FailJob", "Ignore", "Count", "FailIndex"}, "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]}}]},
            "template": {"metadata": dict, "spec": {
                "restartPolicy": {"Never"}, "terminationGracePeriodSeconds": int, "nodeSelector": dict, "serviceAccountName": str,
                "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str, "readOnly": bool}}],
                "containers": [{
                    "name": str, "image": str, "command": [str], "args": [str], "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
                    "ports": [{"containerPort": int}], "volumeMounts": [{"name": str, "mountPath": str}], "resources": {"limits": dict, "requests": dict},
                }],
            }},
        }}}],
    },
}  # fmt: skip


def _check_fields(value, schema, where):
    """Fail where a value has a field, a type or a word that the schema does not have."""
    if isinstance(schema, dict):
        assert set(value) <= set(schema), f"{where}: {set(value) - set(schema)}"
        for name, item in value.items():
            _check_fields(item, schema[name], f"{where}.{name}")
    elif isinstance(schema, list):
        for item in value:
            _check_fields(item, schema[0], where)
    elif isinstance(schema, set):
        assert value in schema, f"{where}: {value}"
    else:
        assert type(value) is schema, f"{where}: {value!r}"


@pytest.mark.parametrize("topology", ["v5p:8x8x4", "2*v5e:16x16", "h100:32"])
def test_every_jobset_fits_the_schema(topology):
    _check_fields(yaml.safe_load(_text("gke", topology, image="repo/lumos:1")), JOBSET, "jobset")
    with pytest.raises(AssertionError, match="jobset.spec.*retries"):
        _check_fields({"spec": {"retries": 1}}, JOBSET, "jobset")


def test_the_skypilot_task_recovers_from_preemption():
    task = yaml.safe_load(_text("skypilot", "h100:32", setup="true"))
    assert task["num_nodes"] == 4 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"] and "SKYPILOT_NODE_RANK" in task["run"]
    tpu = yaml.safe_load(_text("skypilot", "v5e:4x4", setup="true"))
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
