"""docs/deploy/kubernetes/: by the schemas, and whether the objects fit together and the code."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aiotasks import health_urls
from aiotasks.conf import Options
from aiotasks.worker.health import LIVE_WITHIN

from ..worker.harness import Ledger, Start, wait_until
from ..worker.test_health import status
from .files import MANIFESTS, dockerfile, manifests, worker_commands

# Of KEDA, whose schema isn't there.
CUSTOM = {"keda"}


def pods() -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in manifests() if "template" in one["spec"]]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_the_schemas(file: Path) -> None:
    for one in yaml.safe_load_all(file.read_text("utf-8")):
        assert one["metadata"]["name"].startswith("shop-")
        if file.stem not in CUSTOM:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_schemas_find_mistakes() -> None:
    (job,) = manifests("migrate")
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_names_and_labels_meet() -> None:
    labels = {}
    for one in manifests():
        if one["kind"] == "Deployment":
            labels[one["metadata"]["name"]] = template = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"] == template
    (budget,), (service,) = manifests("pdb"), [one for one in manifests("web") if one["kind"] == "Service"]
    assert budget["spec"]["selector"]["matchLabels"] == labels["shop-worker"]
    assert service["spec"]["selector"] == labels["shop-web"]
    for name in ("hpa", "keda"):
        (scaler,) = manifests(name)
        assert scaler["spec"]["scaleTargetRef"]["name"] in labels


def test_two_workers_stay_through_everything() -> None:
    (deployment,), (budget,), (hpa,), (keda,) = map(manifests, ("worker", "pdb", "hpa", "keda"))
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment["spec"]  # else each apply would undo what the HPA has done
    assert hpa["spec"]["minReplicas"] - budget["spec"]["maxUnavailable"] >= 1
    assert hpa["spec"]["minReplicas"] == keda["spec"]["minReplicaCount"]
    assert hpa["spec"]["maxReplicas"] == keda["spec"]["maxReplicaCount"]


def test_containers_are_as_the_image_allows() -> None:
    user = dict(dockerfile())["USER"]
    for pod in pods():
        security = pod["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
        assert security["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_web_server_ends_within_its_grace() -> None:
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests("web") if one["kind"] == "Deployment"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    graceful = int(container["args"][container["args"].index("--timeout-graceful-shutdown") + 1])
    assert pause + graceful < pod["terminationGracePeriodSeconds"]


def test_probes_of_the_site_are_its_views() -> None:
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests("web") if one["kind"] == "Deployment"]
    (container,) = pod["containers"]
    paths = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness")]
    assert paths == [f"/{health_urls.urlpatterns[number].pattern}" for number in (0, 1)]
    assert {port["name"] for port in container["ports"]} == {"http"}


def test_probes(start: Start, ledger: Ledger) -> None:
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests("worker")]
    (container,) = pod["containers"]
    command = worker_commands()["kubernetes/worker.yaml"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"health"}
    assert ports["health"] == command.options.health_port.port

    # A worker whose loop hangs ends itself first, and gives the other tasks back.
    liveness, loop_timeout = probes["liveness"], Options().loop_timeout
    assert loop_timeout is not None
    assert LIVE_WITHIN + liveness["periodSeconds"] * liveness["failureThreshold"] > loop_timeout

    worker = start(*command.here())
    for probe in probes.values():
        path = probe["httpGet"]["path"]
        wait_until(lambda path=path: status(worker, path) == 200)
    assert worker.stop() == 0
