"""Launch files: their syntax, and that what they name is there. None is started here."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # a dependency of ml_collections

from mvo_jax.cli.flags import parse
from mvo_jax.cli.train import _define
from mvo_jax.devices.cluster import Cluster, find_cluster
from mvo_jax.errors import (
    EXIT_COMPARISON,
    EXIT_NON_FINITE,
    EXIT_PEERS,
    EXIT_USER_ERROR,
)

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def test_every_file_has_a_check_here_and_a_line_in_the_page():
    names = {path.name for path in LAUNCH.iterdir()}
    assert names == {
        "slurm.sbatch",
        "tpu_vm.sh",
        "gke_jobset.yaml",
        "skypilot.yaml",
        "Dockerfile.cpu",
        "Dockerfile.cuda",
        "Dockerfile.tpu",
    }
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [name for name in names if f"(../launch/{name})" not in page] == []


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_vm.sh"])
def test_scripts_parse(name):
    result = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (EXIT_USER_ERROR, 0, False),
        (EXIT_NON_FINITE, 0, False),
        (EXIT_PEERS, 0, True),
        (9, 0, True),
        (75, 0, True),
        (137, 19, True),
        (137, 20, False),
    ],
)
def test_slurm_queues_again_what_a_repetition_mends(code, restarts, requeued, tmp_path):
    # srun and scontrol that note what they are asked for.
    for name, ending in (("srun", f"exit {code}"), ("scontrol", "exit 0")):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{ending}\n')
        program.chmod(0o755)
    result = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--config", "configs/mvo.py", "--workdir", "/a b"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code
    first, *others = (tmp_path / "calls").read_text().splitlines()
    assert first.endswith("python train.py --config configs/mvo.py --workdir /a b")
    assert others == (["scontrol requeue 7"] if requeued else [])


def test_slurm_options():
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert options["signal"] == "USR1@120"  # to the tasks, not to the batch script
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "requeue", "output"} <= options.keys()
    assert "#SBATCH" not in text[text.index("set -u") :]  # ignored after the first command


def jobset() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_the_jobset_names_its_own_pods():
    job_set = jobset()
    assert job_set["kind"] == "JobSet"
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pods = job["parallelism"]
    assert (job["completionMode"], job["completions"]) == ("Indexed", pods)
    (container,) = job["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value", "0") for entry in container["env"]}
    name, subdomain = job_set["metadata"]["name"], job_set["spec"]["network"]["subdomain"]
    port = container["ports"][0]["containerPort"]
    assert find_cluster(variables, tpu_workers=lambda _: 0) == Cluster(
        "flags or JAX_* variables", pods, 0, f"{name}-{replicated['name']}-0-0.{subdomain}:{port}"
    )
    given_up = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert given_up["containerName"] == container["name"]
    assert {EXIT_COMPARISON, EXIT_USER_ERROR, EXIT_NON_FINITE} <= set(given_up["values"])
    assert not {0, EXIT_PEERS, 75, 137, 143} & set(given_up["values"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_the_jobset_gives_flags_that_train_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    container = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    script, *arguments = container["containers"][0]["args"]
    assert (ROOT / script).is_file()
    values = parse(arguments, _define, with_config=True)
    assert values.workdir.startswith("/shared/")


def test_skypilot_gives_every_node_its_place(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] > 1
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nenv > {tmp_path}/env\necho "$@" > {tmp_path}/arguments\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", "-euc", task["run"]],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
            **task["envs"],
        },
        check=True,
    )
    lines = (tmp_path / "env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert find_cluster(variables, tpu_workers=lambda _: 0) == Cluster(
        "flags or JAX_* variables", 2, 1, f"10.0.0.1:{task['resources']['ports']}"
    )
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("train.py --config configs/mvo.py")
    assert (ROOT / "configs" / "mvo.py").is_file()


INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize("kind", ["cpu", "cuda", "tpu"])
def test_dockerfiles(kind):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.1")
    assert {line.split()[0] for line in lines} <= INSTRUCTIONS
    copied = [line.split()[1:] for line in lines if line.startswith("COPY")]
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in sent
    extra = {"cpu": '"jax"', "cuda": '"jax[cuda12]"', "tpu": '"jax[tpu]"'}[kind]
    assert f"pip install --no-cache-dir {extra} -r requirements.txt" in text
    assert f"launch/Dockerfile.{kind} -t mvo_jax:{kind}" in text
