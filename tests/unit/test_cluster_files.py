"""docs/cluster's files: the launcher's by Ray's schema, KubeRay's by Ray's reader and fields."""

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "cluster"

# Fields of ray.io/v1 (kuberay, ray-operator/apis/ray/v1/raycluster_types.go at 026f143) that a
# cluster needs;
# None: free keys, texts as values.
API: dict[str, Any] = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "labels": None, "annotations": None},
    "spec": {
        "rayVersion": str, "enableInTreeAutoscaling": bool, "suspend": bool,
        "autoscalerOptions": dict, "authOptions": {"mode": str},
        "headGroupSpec": {"serviceType": str, "rayStartParams": None, "template": "pod"},
        "workerGroupSpecs": [{
            "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
            "numOfHosts": int, "rayStartParams": None, "template": "pod",
        }],
    },
}  # fmt: skip
REQUIRED = {"rayStartParams", "template"}
POD: dict[str, Any] = {
    "metadata": {"labels": None, "annotations": None},
    "spec": {
        "containers": [{
            "name": str, "image": str, "imagePullPolicy": str, "env": list, "command": list,
            "args": list, "ports": [{"containerPort": int, "name": str}],
            "resources": {"requests": None, "limits": None},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
        "nodeSelector": None, "tolerations": list,
    },
}  # fmt: skip


def check(value: Any, fields: Any, place: str) -> None:
    """Check that a value has no field and no type that the API does not know."""
    if fields == "pod":
        fields = POD
    if fields is None:
        assert all(isinstance(item, str) for item in value.values()), (
            f"{place} takes texts only: {value}"
        )
    elif isinstance(fields, dict):
        assert set(value) <= set(fields), f"{place} has no {set(value) - set(fields)}"
        for key, item in value.items():
            check(item, fields[key], f"{place}.{key}")
    elif isinstance(fields, list):
        for i, item in enumerate(value):
            check(item, fields[0], f"{place}[{i}]")
    else:
        assert type(value) is fields, f"{place}={value!r}"


@pytest.fixture
def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def launcher() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / "ray-launcher.yaml").read_text())
    return config


def test_the_launchers_file_fits_rays_schema() -> None:
    prepared = prepare_config(launcher())
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2
    starts = [*launcher()["head_start_ray_commands"], *launcher()["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config({**launcher(), "setup_comands": []}))


def test_kuberays_file_fits_its_api(kubernetes: dict[str, dict[str, Any]]) -> None:
    cluster, claim = kubernetes["RayCluster"], kubernetes["PersistentVolumeClaim"]
    assert cluster["apiVersion"] == "ray.io/v1"
    check(cluster, API, "RayCluster")
    with pytest.raises(AssertionError, match="takes texts only"):
        check({"spec": {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}}}}, API, "RayCluster")
    spec = cluster["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group.keys() >= REQUIRED
    assert all(
        {"groupName", "minReplicas", "maxReplicas"} <= group.keys()
        for group in spec["workerGroupSpecs"]
    )
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    pods = [
        spec["headGroupSpec"]["template"],
        *(group["template"] for group in spec["workerGroupSpecs"]),
    ]
    assert len({container["image"] for pod in pods for container in pod["spec"]["containers"]}) == 1
    for pod in pods:  # every node sees the folder of the checkpoints
        [container] = pod["spec"]["containers"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        [volume] = pod["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_ray_itself_reads_kuberays_file(kubernetes: dict[str, dict[str, Any]]) -> None:
    cluster = kubernetes["RayCluster"]
    cluster["metadata"]["namespace"] = "default"
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["cpu"]["resources"]["CPU"], types["cpu"]["max_workers"]) == (8, 2)
