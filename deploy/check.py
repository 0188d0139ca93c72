"""What can be checked of deploy/ without a cluster: `make check-deploy`.

Kubernetes manifests, the pods of a RayCluster and the job that values.yaml makes of a run, by the API's
schemas; Dagster's settings by Dagster and the classes they name. Not checked: the rest of values.yaml by the
chart's schema and of RayCluster by KubeRay's, and that any of it runs.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml
from dagster._core.instance import InstanceRef
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient

HERE = Path(__file__).parent
KUBERNETES = "1.37"
# Written out here only so that Dagster can resolve the settings; nothing is connected to.
ENVIRONMENT = {"DAGSTER_PG_URL": "postgresql://nobody@127.0.0.1/none"}


def main() -> None:
    for path in sorted(HERE.glob("k8s/*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            for each in checked(manifest):
                kubernetes_validate.validate(each, KUBERNETES, strict=True)
                print(f"{path.name}: {each['kind']} is valid for Kubernetes {KUBERNETES}")
    os.environ.update(ENVIRONMENT)
    for path in sorted(HERE.glob("*/dagster.yaml")):
        if path.parent.name == "ray":
            continue  # by `make cluster`, where it runs
        with tempfile.TemporaryDirectory() as home:
            shutil.copy(path, Path(home, "dagster.yaml"))
            reference = InstanceRef.from_dir(home)
            launcher = reference.run_launcher_data
            print(f"{path.parent.name}/dagster.yaml: {launcher.rehydrate(as_type=object).__class__.__name__}")


def checked(manifest: dict) -> list[dict]:
    """What the schemas know of a manifest."""
    if "kind" not in manifest:
        return [job_of_a_run(manifest)]
    if manifest["kind"] != "RayCluster":
        return [manifest]
    spec = manifest["spec"]
    specs = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": each} for each in specs]


def job_of_a_run(values: dict) -> dict:
    """The Kubernetes job that Dagster makes of a run by these values of its chart."""
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    [deployment] = values["dagster-user-deployments"]["deployments"]
    image = "{repository}:{tag}".format(**deployment["image"])
    secrets = [secret["name"] for secret in launcher["envSecrets"]]
    config = DagsterK8sJobConfig(image, "/opt/dagster/home", env_secrets=secrets)
    given = launcher["runK8sConfig"]
    asked = {"container_config": given["containerConfig"], "pod_spec_config": given["podSpecConfig"]}
    job = construct_dagster_k8s_job(
        config, ["dagster"], "run", user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(asked)
    )
    return ApiClient().sanitize_for_serialization(job)


if __name__ == "__main__":
    sys.exit(main())
