"""The formats that are the root tree itself: a copied directory, a compressed tar, an OCI archive.

Same tree and epoch, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import time
from io import BytesIO
from pathlib import Path

from appliance.archive import write_tar
from appliance.cache import digest_file
from appliance.platform_data import PlatformData
from appliance.profile import Profile
from appliance.run import require, run
from appliance.scratch import Scratch
from appliance.stages import BuildContext, replacing

# Levels are fixed; the number of threads does not change what either writes.
COMPRESSORS = {
    "zstd": ("zstd", "-q", "-10", "-T0", "-f"),
    "xz": ("xz", "-q", "-6", "-T0", "-f", "-k"),
}


def copy_root(root: Path, target: Path, context: BuildContext) -> None:
    """Copy the tree as it is: owners, links, extended attributes."""
    with replacing(target) as partial:
        run(["cp", "--archive", "--reflink=auto", "--no-target-directory", root, partial], log=context.log)


def write_tbz(root: Path, target: Path, profile: Profile, context: BuildContext) -> None:
    """Write the tree as a tar, compressed as the profile says (the file name ends accordingly)."""
    with replacing(target) as partial:
        _compressed_tar(root, partial, profile.output.compression, context)


def _compressed_tar(root: Path, target: Path, compression: str, context: BuildContext) -> str:
    """Write the tree's tar and compress it; returns SHA-256 of the plain tar."""
    plain = target.with_name(f"{target.name}.plain")
    try:
        with plain.open("wb") as stream:
            write_tar(stream, root, context.epoch, owners=True)
        digest = digest_file(plain)
        if compression == "none":
            plain.rename(target)
            return digest
        words = COMPRESSORS[compression]
        require({words[0]: f"{words[0]} or xz-utils"})
        run([*words, plain], log=context.log, limit_seconds=3600)
        compressed = next(plain.parent.glob(f"{plain.name}.*"))
        compressed.rename(target)
    finally:
        for left in plain.parent.glob(f"{plain.name}*"):
            left.unlink()
    return digest


def write_oci(
    root: Path, target: Path, profile: Profile, platform: PlatformData, context: BuildContext
) -> None:
    """Write an OCI image archive (image-spec 1.0: `oci-layout`, `index.json`, blobs), one layer."""
    with replacing(target) as partial, Scratch(dir=target.parent, prefix=".oci-") as name:
        blobs = Path(name) / "blobs/sha256"
        blobs.mkdir(parents=True)
        layer_file = Path(name) / "layer"
        plain_digest = _compressed_tar(root, layer_file, "zstd", context)
        layer = _adopt(blobs, layer_file, "application/vnd.oci.image.layer.v1.tar+zstd")
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(context.epoch))
        config = {
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["/sbin/init"],
                "StopSignal": "SIGRTMIN+3",
                "Labels": {
                    "org.opencontainers.image.title": profile.product.title,
                    "org.opencontainers.image.version": profile.product.version,
                    "org.opencontainers.image.vendor": profile.product.publisher,
                    "org.opencontainers.image.base.name": platform.name,
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{plain_digest}"]},
            "history": [{"created": created, "created_by": "centralino-build"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(blobs, config, "application/vnd.oci.image.config.v1+json"),
            "layers": [layer],
        }
        described = _blob(blobs, manifest, "application/vnd.oci.image.manifest.v1+json")
        reference = profile.output.oci.reference or f"{profile.product.name}:{profile.product.version}"
        described["annotations"] = {
            "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
            "io.containerd.image.name": reference,
        }
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        }
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
            _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode(), context.epoch)
            _add(archive, "index.json", json.dumps(index, sort_keys=True).encode(), context.epoch)
            for blob in sorted(blobs.iterdir()):
                info = archive.gettarinfo(blob, arcname=f"blobs/sha256/{blob.name}")
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime, info.mode = context.epoch, 0o644
                with blob.open("rb") as stream:
                    archive.addfile(info, stream)


def _add(archive: tarfile.TarFile, name: str, content: bytes, epoch: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), epoch, 0o644
    archive.addfile(info, BytesIO(content))


def _blob(blobs: Path, value: object, media_type: str) -> dict[str, object]:
    content = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _adopt(blobs: Path, file: Path, media_type: str) -> dict[str, object]:
    digest, size = digest_file(file), file.stat().st_size
    file.rename(blobs / digest)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}
