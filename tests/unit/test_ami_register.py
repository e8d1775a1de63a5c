"""Registration of an AMI: the calls are checked by botocore against Amazon's own service models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from click.testing import CliRunner

from appliance.ami import Registrar, image_parameters, import_parameters, load_registration, registration
from appliance.artifact_cli import ami
from appliance.errors import BuildError, InputError
from appliance.platform_data import load_platform
from appliance.profile import load_profile

BUCKET = "images"


@pytest.fixture
def document() -> dict[str, object]:
    profile = load_profile(Path("pbx-debian12"))
    return registration(profile, load_platform("debian12"), "x.ami.raw", "0" * 64, 8 << 30)


class Uploads:
    """S3 as far as it is used: what was uploaded and not removed again."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def upload_file(self, Filename: str, Bucket: str, Key: str) -> None:  # noqa: N803
        assert Bucket == BUCKET
        self.keys.append(Key)

    def delete_object(self, **parameters: Any) -> dict[str, object]:
        self.keys.remove(parameters["Key"])
        return {}


def client() -> tuple[Any, Stubber]:
    made = boto3.client("ec2", region_name="eu-south-1", aws_access_key_id="x", aws_secret_access_key="x")
    return made, Stubber(made)


def detail(status: str, **more: str) -> dict[str, object]:
    return {
        "ImportSnapshotTasks": [
            {"ImportTaskId": "import-1", "SnapshotTaskDetail": {"Status": status, **more}}
        ]
    }


def test_every_call_in_order(document: dict[str, object]) -> None:
    ec2, stubber = client()
    uploads = Uploads()
    pauses: list[float] = []
    stubber.add_response("import_snapshot", {"ImportTaskId": "import-1"}, import_parameters(document, BUCKET))
    ask = {"ImportTaskIds": ["import-1"]}
    stubber.add_response("describe_import_snapshot_tasks", detail("active", Progress="40"), ask)
    stubber.add_response("describe_import_snapshot_tasks", detail("completed", SnapshotId="snap-1"), ask)
    stubber.add_response("register_image", {"ImageId": "ami-1"}, image_parameters(document, "snap-1"))
    tags = [{"Key": "Name", "Value": document["name"]}, {"Key": "sha256", "Value": "0" * 64}]
    stubber.add_response("create_tags", {}, {"Resources": ["ami-1", "snap-1"], "Tags": tags})
    with stubber:
        made = Registrar(uploads, ec2, BUCKET, pause=pauses.append).register(document, Path("x.ami.raw"))
        stubber.assert_no_pending_responses()
    assert made == {"image": "ami-1", "snapshot": "snap-1"}
    assert len(pauses) == 1
    assert uploads.keys == []


def test_what_is_registered(document: dict[str, object]) -> None:
    parameters = image_parameters(document, "snap-1")
    assert parameters["BootMode"] == "uefi-preferred"
    assert parameters["ImdsSupport"] == "v2.0"
    assert parameters["EnaSupport"] is True
    mapping = parameters["BlockDeviceMappings"]
    assert isinstance(mapping, list)
    assert mapping[0]["Ebs"]["VolumeType"] == "gp3"
    # S-SZ-01, 75 users.
    assert mapping[0]["Ebs"]["VolumeSize"] == 150


def test_a_failed_import_leaves_nothing_in_the_bucket(document: dict[str, object]) -> None:
    ec2, stubber = client()
    uploads = Uploads()
    stubber.add_response("import_snapshot", {"ImportTaskId": "import-1"})
    stubber.add_response(
        "describe_import_snapshot_tasks",
        detail("deleted", StatusMessage="ClientError: Disk validation failed"),
    )
    with stubber, pytest.raises(BuildError, match="Disk validation failed"):
        Registrar(uploads, ec2, BUCKET).register(document, Path("x.ami.raw"))
    assert uploads.keys == []


def test_an_endless_import_ends(document: dict[str, object]) -> None:
    ec2, stubber = client()
    times = iter([0.0, 10.0, 8000.0])
    stubber.add_response("import_snapshot", {"ImportTaskId": "import-1"})
    for _ in range(2):
        stubber.add_response("describe_import_snapshot_tasks", detail("active"))
    with stubber, pytest.raises(BuildError, match="two hours"):
        Registrar(Uploads(), ec2, BUCKET, pause=lambda _: None, clock=lambda: next(times)).register(
            document, Path("x.ami.raw")
        )


def test_dry_run_prints_the_calls_and_makes_none(document: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "x.ami.json"
    file.write_text(json.dumps(document))
    result = CliRunner().invoke(ami, ["register", str(file), "--bucket", BUCKET, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    calls = [f"{each['service']}.{each['operation']}" for each in json.loads(result.output)]
    assert calls == [
        "s3.upload_file", "ec2.import_snapshot", "ec2.describe_import_snapshot_tasks", "s3.delete_object",
        "ec2.register_image", "ec2.create_tags",
    ]  # fmt: skip
    assert {each["region"] for each in json.loads(result.output)} == {document["region"]}


def test_dry_run_names_the_region_that_was_asked_for(document: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "x.ami.json"
    file.write_text(json.dumps(document))
    words = ["register", str(file), "--bucket", BUCKET, "--region", "eu-south-2", "--dry-run"]
    assert CliRunner().invoke(ami, words).output.startswith("region: eu-south-2\n")


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 7}')
    with pytest.raises(InputError, match=r"is not an ami\.json"):
        load_registration(tmp_path / "x.json")
