"""Makes .venv with the versions the tests were run on; `make` calls it. Uses the standard library only.

`python bootstrap.py base` installs minitrain; `test` and `docs` install it with the extra of that name. Where this Python
already has a torch that is new enough, the environment uses it instead of downloading another.
"""

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent
OLDEST_TESTED_TORCH = (2, 13)


def own_torch() -> Path | None:
    """The folder of packages that this Python's own torch lies in, if that torch imports and is new enough."""
    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    version = tuple(int(part) for part in torch.version.split("+")[0].split(".")[:2])
    imports = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    return Path(str(torch.locate_file(""))).resolve() if imports and version >= OLDEST_TESTED_TORCH else None


def main() -> None:
    """Creates the environment where there is none, and installs into it."""
    if sys.version_info < (3, 11):  # noqa: UP036  (pip would say it too, but not what to do)
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"minitrain needs Python 3.11 or newer, and this is {found}; call `make PYTHON=python3.12 demo`, say")
    extra = sys.argv[1] if len(sys.argv) > 1 else "base"
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints = ROOT / "constraints.txt"
    if not python.exists():
        packages = own_torch()
        venv.create(folder, with_pip=True)
        if packages:
            print(f"Making .venv with the PyTorch that lies in {packages}", flush=True)
            library = next(folder.glob("[Ll]ib*/**/site-packages"))
            (library / "own-torch.pth").write_text(f"{packages}\n")
        else:
            print(
                "Making .venv with PyTorch and what else is needed: about 3 GB on Linux (with PyTorch's GPU libraries),\n"
                "0.5 GB elsewhere. A few minutes on a fast line, less where pip has the files already.",
                flush=True,
            )
    if next(folder.glob("[Ll]ib*/**/own-torch.pth"), None):
        lines = [line for line in constraints.read_text().splitlines() if not line.startswith("torch==")]
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(lines) + "\n")
    package = "." if extra == "base" else f".[{extra}]"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--constraint", str(constraints), "--editable", package], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit("pip could not install everything (its message stands above); call make again to go on")
    (folder / f"ready-{extra}").touch()


if __name__ == "__main__":
    main()
