"""Amazon machine images: what is registered (`ami.json`) and the calls that register it.

There is no AMI in a file: the artefact is a raw disk with the data of its registration beside it. Path taken:
upload to S3, import as a snapshot, register an image from that snapshot. `import-image` is avoided, it
refuses the boot mode uefi-preferred and kernels that it does not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.errors import BuildError, InputError
from appliance.platform_data import PlatformData
from appliance.profile import Profile

SCHEMA = 1
ROOT_DEVICE = "/dev/sda1"
LARGEST_DESCRIPTION = 1 << 16
POLL_SECONDS = 15.0
IMPORT_LIMIT_SECONDS = 2 * 3600.0

Call = tuple[str, str, dict[str, object]]


def registration(
    profile: Profile, platform: PlatformData, file: str, sha256: str, size: int
) -> dict[str, object]:
    """The content of `ami.json`: how the disk `file` (bytes `size`) is to be registered."""
    options = profile.output.ami
    return {
        "schema": SCHEMA,
        "name": f"{profile.product.name}-{profile.product.version}-{platform.name}",
        "description": f"{profile.product.title} {profile.product.version} on {platform.title}",
        "architecture": platform.architecture,
        "file": file,
        "format": "RAW",
        "sha256": sha256,
        "size": size,
        "boot_mode": "uefi-preferred",
        "ena": True,
        "sriov": "simple",
        "imds": "v2.0",
        "root_device": ROOT_DEVICE,
        "volume_type": options.volume_type,
        "volume_gib": options.volume_gib or profile.disk.tier.sizes.disk_gib,
        "region": options.region,
        "bucket": options.bucket,
    }


def load_registration(path: Path) -> dict[str, object]:
    """Read an `ami.json`; raises InputError unless it is one."""
    try:
        with path.open(encoding="utf-8") as stream:
            # Of the disk beside it, named by mistake, no more than this is read.
            document = json.loads(stream.read(LARGEST_DESCRIPTION))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", "give the ami.json that was made beside the disk") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or "root_device" not in document:
        raise InputError(f"{path} is not an ami.json of this builder", "build the format `ami` again")
    return document


def planned_calls(document: dict[str, object], bucket: str) -> list[Call]:
    """(service, operation, parameters) of the registration, in order; identifiers known later are `<...>`."""
    key = str(document["file"])
    return [
        ("s3", "upload_file", {"Filename": key, "Bucket": bucket, "Key": key}),
        ("ec2", "import_snapshot", import_parameters(document, bucket)),
        ("ec2", "describe_import_snapshot_tasks", {"ImportTaskIds": ["<import task>"]}),
        ("s3", "delete_object", {"Bucket": bucket, "Key": key}),
        ("ec2", "register_image", image_parameters(document, "<snapshot>")),
        ("ec2", "create_tags", tag_parameters(document, ["<image>", "<snapshot>"])),
    ]


def import_parameters(document: dict[str, object], bucket: str) -> dict[str, object]:
    """Parameters of EC2's ImportSnapshot."""
    return {
        "Description": str(document["description"]),
        "DiskContainer": {
            "Description": str(document["name"]),
            "Format": str(document["format"]),
            "UserBucket": {"S3Bucket": bucket, "S3Key": str(document["file"])},
        },
    }


def image_parameters(document: dict[str, object], snapshot: str) -> dict[str, object]:
    """Parameters of EC2's RegisterImage."""
    return {
        "Name": str(document["name"]),
        "Description": str(document["description"]),
        "Architecture": str(document["architecture"]),
        "VirtualizationType": "hvm",
        "BootMode": str(document["boot_mode"]),
        "EnaSupport": bool(document["ena"]),
        "SriovNetSupport": str(document["sriov"]),
        # Tokens required, hop limit 2; cannot be taken back on a registered image.
        "ImdsSupport": str(document["imds"]),
        "RootDeviceName": str(document["root_device"]),
        "BlockDeviceMappings": [
            {
                "DeviceName": str(document["root_device"]),
                "Ebs": {
                    "SnapshotId": snapshot,
                    "VolumeType": str(document["volume_type"]),
                    "VolumeSize": document["volume_gib"],
                    "DeleteOnTermination": True,
                },
            }
        ],
    }


def tag_parameters(document: dict[str, object], resources: list[str]) -> dict[str, object]:
    """Parameters of EC2's CreateTags."""
    tags = [
        {"Key": "Name", "Value": str(document["name"])},
        {"Key": "sha256", "Value": str(document["sha256"])},
    ]
    return {"Resources": resources, "Tags": tags}


class S3Client(Protocol):
    """The calls of boto3's S3 client that are used here."""

    def upload_file(self, Filename: str, Bucket: str, Key: str) -> None:  # noqa: N803 (boto3's names)
        """Upload a file, in parts if it is large."""

    def delete_object(self, **parameters: object) -> dict[str, object]:
        """Remove an object."""
        ...


class Ec2Client(Protocol):
    """The calls of boto3's EC2 client that are used here."""

    def import_snapshot(self, **parameters: object) -> dict[str, object]:
        """Start the import of a disk."""
        ...

    def describe_import_snapshot_tasks(self, **parameters: object) -> dict[str, object]:
        """State of imports."""
        ...

    def register_image(self, **parameters: object) -> dict[str, object]:
        """Make an image of a snapshot."""
        ...

    def create_tags(self, **parameters: object) -> dict[str, object]:
        """Tag resources."""
        ...


@dataclass
class Registrar:
    """Registers one disk. `pause` waits between looks at the import, `say` tells a person how far it is."""

    s3: S3Client
    ec2: Ec2Client
    bucket: str
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda text: None

    def register(self, document: dict[str, object], disk: Path) -> dict[str, str]:
        """Upload, import, register, tag; returns `image` and `snapshot`.

        The uploaded object is removed in any case. Raises BuildError if the import fails or takes more than
        two hours.
        """
        key = str(document["file"])
        self.say(f"Upload {disk} to s3://{self.bucket}/{key}")
        self.s3.upload_file(Filename=str(disk), Bucket=self.bucket, Key=key)
        try:
            started = self.ec2.import_snapshot(**import_parameters(document, self.bucket))
            snapshot = self._wait(str(started["ImportTaskId"]))
        finally:
            self.s3.delete_object(Bucket=self.bucket, Key=key)
        registered = self.ec2.register_image(**image_parameters(document, snapshot))
        image = str(registered["ImageId"])
        self.ec2.create_tags(**tag_parameters(document, [image, snapshot]))
        self.say(f"Registered {image} from {snapshot}")
        return {"image": image, "snapshot": snapshot}

    def _wait(self, task: str) -> str:
        deadline = self.clock() + IMPORT_LIMIT_SECONDS
        while True:
            answer = self.ec2.describe_import_snapshot_tasks(ImportTaskIds=[task])
            tasks = answer.get("ImportSnapshotTasks")
            detail = tasks[0].get("SnapshotTaskDetail", {}) if isinstance(tasks, list) and tasks else {}
            status = str(detail.get("Status", "unknown"))
            if status == "completed":
                return str(detail["SnapshotId"])
            if status in ("deleted", "deleting", "error"):
                raise BuildError(
                    f"the import {task} failed: {detail.get('StatusMessage', status)}",
                    "look at the task in the EC2 console; the service role vmimport must read the bucket",
                )
            if self.clock() >= deadline:
                raise BuildError(
                    f"the import {task} did not end within two hours", "look at it in the EC2 console"
                )
            self.say(f"Import {task}: {status} {detail.get('Progress', '')}%")
            self.pause(POLL_SECONDS)
