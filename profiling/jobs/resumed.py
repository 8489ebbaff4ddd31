"""A long measurement in parts: what was measured before the script was killed is not measured again.

Beside the result lies a folder ``NAME.part`` while it grows. Its ``parts.json`` holds what was asked for, the commit, and what
each finished part returned; where these differ from what is asked for now, all begins anew. The folder goes when the result
is written.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from cllm.files import whole
from jobs import record


class Parts:
    """The finished parts of a measurement that ends in the file `path`.

    Parameters
    ----------
    path : Path
        Of the result.
    asked : dict
        What is measured, plain data.
    fresh : bool
        Begin anew whatever there is.
    """

    def __init__(self, path: Path, asked: dict, fresh: bool = False):
        self.folder = path.with_name(f"{path.stem}.part")
        self._file = self.folder / "parts.json"
        about = json.loads(json.dumps({"asked": asked, "commit": record.commit()}))
        found = {} if fresh or not self._file.exists() else json.loads(self._file.read_text(encoding="utf-8"))
        if found.get("about") == about:
            self._found = found
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._found = {"about": about, "parts": {}}
        self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._found["parts"])

    def part(self, name: str, measure: Callable[[], object]) -> object:
        """What that part returned before, or what it returns now, which is written down."""
        parts = self._found["parts"]
        if name not in parts:
            parts[name] = measure()
            with whole(self._file) as partial:
                partial.write_text(json.dumps(self._found), encoding="utf-8")
        return parts[name]

    def finish(self) -> None:
        """The result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
