"""What can be checked of deploy/ without a cluster: `make check-deploy`.

Kubernetes manifests by the API's schemas, Dagster's settings by Dagster and the classes they name. Not
checked: values.yaml by the chart's own schema, RayCluster by KubeRay's, and that any of it runs.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml
from dagster._core.instance import InstanceRef

HERE = Path(__file__).parent
KUBERNETES = "1.37"
# Written out here only so that Dagster can resolve the settings; nothing is connected to.
ENVIRONMENT = {"DAGSTER_PG_URL": "postgresql://nobody@127.0.0.1/none"}


def main() -> None:
    for path in sorted(HERE.glob("k8s/*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            if "kind" not in manifest or manifest["kind"] == "RayCluster":
                print(f"{path.name}: is YAML")
                continue
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            print(f"{path.name}: {manifest['kind']} is valid for Kubernetes {KUBERNETES}")
    os.environ.update(ENVIRONMENT)
    for path in sorted(HERE.glob("*/dagster.yaml")):
        if path.parent.name == "ray":
            continue  # by `make cluster`, where it runs
        with tempfile.TemporaryDirectory() as home:
            shutil.copy(path, Path(home, "dagster.yaml"))
            reference = InstanceRef.from_dir(home)
            launcher = reference.run_launcher_data
            print(f"{path.parent.name}/dagster.yaml: {launcher.rehydrate(as_type=object).__class__.__name__}")


if __name__ == "__main__":
    sys.exit(main())
