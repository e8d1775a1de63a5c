"""Runs inside the platform's tree: `build_wheel.py WORKSHOP REQUIREMENT`.

Makes an environment with the locked compiler packages and compiles the requirement into WORKSHOP/wheels,
from WORKSHOP/downloads alone. For any Python from 3.6 on.
"""

import subprocess
import sys
import venv


def main() -> None:
    """Entry point; see the module's text."""
    workshop, requirement = sys.argv[1], sys.argv[2]
    place = workshop + "/venv"
    venv.create(place, with_pip=True)
    pip = [place + "/bin/python", "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--find-links", workshop + "/downloads"]
    subprocess.run(
        [*pip, "install", *offline, "--require-hashes", "-r", workshop + "/compile.txt"], check=True
    )
    subprocess.run(
        [
            *pip,
            "wheel",
            *offline,
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            workshop + "/wheels",
            requirement,
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
