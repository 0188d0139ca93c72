"""Versions of a task's recommender in MLflow's registry, found by alias or by the profile they came from."""

from dataclasses import dataclass
from pathlib import Path

from assets.state.tracking import MlflowTracking

ALIAS = "champion"


class NotRegistered(LookupError):
    """No version is there to answer; the message says how to make one."""


@dataclass(frozen=True)
class Version:
    """A version in the registry. source: where its model lies; tags: as `register` has set them."""

    name: str
    number: str
    source: str
    tags: dict[str, str]

    def download(self, tracking: MlflowTracking, folder: Path, part: str = "") -> Path:
        """Copy its model, or the folder `part` of it, into `folder`; returns where."""
        from mlflow.artifacts import download_artifacts

        uri = f"{self.source}/{part}".rstrip("/")
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking.uri))


def registered_name(task: str) -> str:
    return f"diffcdr-{task}"


def find(tracking: MlflowTracking, task: str, profile: str = "") -> Version | None:
    """The champion of a task, or with a profile the latest version that came from it; None where there is
    none. Raises TrackingError where the registry does not answer."""
    if not tracking.has_runs:
        return None
    client, _ = tracking.connect()
    from mlflow.exceptions import MlflowException

    name = registered_name(task)
    try:
        if not profile:
            return _version(client.get_model_version_by_alias(name, ALIAS))
        versions = client.search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        with tracking.answering():
            raise
    of_profile = [each for each in versions if each.tags.get("profile") == profile]
    return _version(max(of_profile, key=lambda each: int(each.version))) if of_profile else None


def require(tracking: MlflowTracking, task: str, profile: str = "") -> Version:
    """As `find`. Raises NotRegistered where there is none."""
    found = find(tracking, task, profile)
    if found is None:
        what = f"no version of profile {profile}" if profile else f"no {ALIAS}"
        raise NotRegistered(
            f"{registered_name(task)} has {what} in {tracking.uri}; make one with `diffcdr run --task {task} "
            f"--profile {profile or 'tuned'}` and `diffcdr register --task {task} "
            f"--profile {profile or 'tuned'}`"
        )
    return found


def _version(found) -> Version:
    return Version(found.name, str(found.version), found.source, dict(found.tags))
