"""Launch files: their syntax, and that what they name is there. None is started here."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # a dependency of ml_collections

from mvo_jax.cli.flags import parse
from mvo_jax.cli.train import _define
from mvo_jax.devices.cluster import Cluster, find_cluster
from mvo_jax.errors import EXIT_COMPARISON, EXIT_NON_FINITE, EXIT_PEERS, EXIT_USER_ERROR

EXIT_ABORTED = 128 + signal.SIGABRT  # by JAX, which has noticed a lost process first
ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def test_every_file_has_a_check_here_and_a_line_in_the_page():
    names = {path.name for path in LAUNCH.iterdir()}
    assert names == {"slurm.sbatch", "jobset.yaml", "Dockerfile"}
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [name for name in names if f"(../launch/{name})" not in page] == []


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (EXIT_USER_ERROR, 0, False),
        (EXIT_NON_FINITE, 0, False),
        (EXIT_PEERS, 0, True),
        (9, 0, True),
        (75, 0, True),
        (EXIT_ABORTED, 0, True),
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
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


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
    assert find_cluster(variables) == Cluster(
        "flags or JAX_* variables", pods, 0, f"{name}-{replicated['name']}-0-0.{subdomain}:{port}"
    )
    given_up = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert given_up["containerName"] == container["name"]
    assert {EXIT_COMPARISON, EXIT_USER_ERROR, EXIT_NON_FINITE} <= set(given_up["values"])
    assert not {0, EXIT_PEERS, EXIT_ABORTED, 75, 137, 143} & set(given_up["values"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_the_jobset_gives_flags_that_train_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    container = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    script, *arguments = container["containers"][0]["args"]
    assert (ROOT / script).is_file()
    values = parse(arguments, _define, with_config=True)
    assert values.workdir.startswith("/shared/")


def test_the_dockerfile_copies_what_is_sent_and_installs_what_is_asked_for():
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM python:3.1")
    instructions = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines} <= instructions
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in sent
    assert lines.index("ARG JAX=jax") < lines.index(
        'RUN pip install --no-cache-dir "$JAX" -r requirements.txt'
    )
    page = (ROOT / "docs" / "cluster.md").read_text()
    for kind in ("cuda12", "tpu"):
        assert f'docker build -f launch/Dockerfile --build-arg JAX="jax[{kind}]"' in page
