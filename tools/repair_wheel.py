"""Make a wheel that runs elsewhere of one that was built here: auditwheel puts libgomp into it and takes symbols out.

    python tools/repair_wheel.py WHEEL DESTINATION

The licence of what was put in goes with it, and a wheel that is too large, or that looks for libraries where they lie on the
machine that built it, is refused. pyproject.toml has cibuildwheel call this, too.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from wheel.wheelfile import WheelFile

LARGEST = 6_000_000  # bytes of a wheel with all levels
LICENSES = Path(__file__).parent / "licenses"


def repair(wheel, destination):
    """Repaired copy of `wheel` in `destination`; its path."""
    with tempfile.TemporaryDirectory() as folder:
        repaired, unpacked = Path(folder, "repaired"), Path(folder, "unpacked")
        subprocess.run(["auditwheel", "repair", "--strip", "--wheel-dir", repaired, wheel], check=True)
        found, = repaired.glob("*.whl")
        with WheelFile(found) as file:
            file.extractall(unpacked)
        for library in unpacked.rglob("*.so*"):
            refuse_paths_of_this_machine(library)
        info, = unpacked.glob("*.dist-info")
        for library in {file.name.split("-")[0].split(".")[0] for file in unpacked.glob("*.libs/*")}:
            text = LICENSES / f"LICENSE.{library}.txt"
            if not text.exists():
                raise SystemExit(f"{wheel}: what is put into it must have its licence in {LICENSES}; got {library}. Add it.")
            (info / "licenses" / text.name).write_bytes(text.read_bytes())
        destination.mkdir(parents=True, exist_ok=True)
        result = destination / found.name
        with WheelFile(result, "w") as file:  # makes its list of digests anew
            file.write_files(unpacked)
    if result.stat().st_size > LARGEST:
        raise SystemExit(f"{result}: must have at most {LARGEST:,} bytes; got {result.stat().st_size:,}. Look what is in it.")
    return result


def refuse_paths_of_this_machine(library):
    """End where a shared object looks for others anywhere but beside itself."""
    with open(library, "rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        paths = [getattr(tag, field) for tag in dynamic.iter_tags() for name, field in
                 (("DT_RPATH", "rpath"), ("DT_RUNPATH", "runpath")) if tag.entry.d_tag == name]
    if any(part and not part.startswith("$ORIGIN") for path in paths for part in path.split(":")):
        raise SystemExit(f"{library.name}: must look for libraries beside itself; got {paths}. Build with another Python.")


if __name__ == "__main__":
    print(repair(Path(sys.argv[1]), Path(sys.argv[2])))
