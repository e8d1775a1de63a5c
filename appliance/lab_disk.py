"""A node's disk: an ext4 file system of its own in a file, over which the read-only root tree is laid.

An own file system makes bad days real: it can be full, and when the power goes, whatever the node had not
yet fsynced is gone (ext4's shutdown request discards what the kernel still held in memory, as the loss of
power would), while the journal decides what the next boot finds.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.lab_host import LabError, execute, wait_for

DEFAULT_SIZE = 4 << 30
# include/uapi/linux/ext4.h: EXT4_IOC_SHUTDOWN is _IOR('X', 125, __u32); 2 is "do not flush the journal".
SHUTDOWN_REQUEST = 0x8004587D
SHUTDOWN_WITHOUT_FLUSH = 2


@dataclass(frozen=True)
class Disk:
    """The disk of one node in `directory`; `root` is the tree below, `size` its capacity in bytes."""

    root: Path
    directory: Path
    size: int = DEFAULT_SIZE

    @property
    def image(self) -> Path:
        """The file that holds the file system (sparse)."""
        return self.directory / "disk.img"

    @property
    def mounted(self) -> Path:
        """Where the file system is mounted on the host: `upper` and `work` lie in it."""
        return self.directory / "disk"

    @property
    def upper(self) -> Path:
        """What the node wrote; empty until it is mounted."""
        return self.mounted / "upper"

    @property
    def tree(self) -> Path:
        """The node's `/`."""
        return self.directory / "root"

    @property
    def is_mounted(self) -> bool:
        """Whether the node's `/` is there."""
        return os.path.ismount(self.tree)

    def create(self) -> None:
        """Make the empty disk; sparse, so it costs what the node writes."""
        self.mounted.mkdir(parents=True, exist_ok=True)
        self.tree.mkdir(exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(self.size)
        # No reserved blocks: full shall mean full for root too.
        execute(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", str(self.image)])

    def mount(self) -> None:
        """Mount the disk (replaying its journal after a power loss) and lay it over the root tree."""
        if self.is_mounted:
            return
        if not os.path.ismount(self.mounted):
            execute(["mount", "-t", "ext4", "-o", "loop,nodiscard", str(self.image), str(self.mounted)])
        for name in ("upper", "work"):
            (self.mounted / name).mkdir(exist_ok=True)
        (self.mounted / "upper").chmod(0o755)
        layers = f"lowerdir={self.root},upperdir={self.upper},workdir={self.mounted / 'work'}"
        execute(["mount", "-t", "overlay", f"lab-{self.directory.name}", "-o", layers, str(self.tree)])

    def lose_power(self) -> None:
        """Discard whatever was not yet on the disk; only `unmount` makes sense afterwards."""
        if os.path.ismount(self.mounted):
            discard(self.mounted)

    def unmount(self) -> None:
        """Take the tree and the disk away, and wait until the loop device has let go of the image.

        Mounted again too early, the kernel would hand out the file system that lost its power.
        """
        for target in (self.tree, self.mounted):
            if os.path.ismount(target):
                execute(["umount", str(target)])
        wait_for(lambda: not self._attached(), 30, f"the release of {self.image}")

    def _attached(self) -> bool:
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # released while we looked
                if file.read_text().strip() == str(self.image):
                    return True
        return False

    def fill(self, leave_bytes: int = 0) -> None:
        """Use up all but `leave_bytes` of the free space by a file that the node cannot see."""
        ballast = self.mounted / "ballast"
        status = os.statvfs(self.mounted)
        wanted = status.f_bavail * status.f_frsize - leave_bytes
        with ballast.open("ab") as file:
            used = file.seek(0, os.SEEK_END)
            while wanted >= status.f_frsize:
                try:
                    os.posix_fallocate(file.fileno(), used, wanted)
                    used += wanted
                    status = os.statvfs(self.mounted)
                    wanted = status.f_bavail * status.f_frsize - leave_bytes
                except OSError:
                    wanted //= 2  # metadata of the file itself needs room, too

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.mounted / "ballast").unlink(missing_ok=True)


def discard(mounted: Path) -> None:
    """Stop an ext4 file system as a power loss would: nothing more is written, not even its journal."""
    descriptor = os.open(mounted, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN_REQUEST, struct.pack("=I", SHUTDOWN_WITHOUT_FLUSH))
    except OSError as error:
        raise LabError(f"the power loss of {mounted} could not be played: {error.strerror}") from error
    finally:
        os.close(descriptor)
