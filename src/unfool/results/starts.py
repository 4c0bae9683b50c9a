"""The processes that worked on a run: a small file for each start, which no result depends on."""

import json
import secrets

from unfool.results.report_json import Provenance
from unfool.results.run_folder import STARTS, Run
from unfool.runtime.files import write_bytes
from unfool.runtime.provenance import Start, describe_start
from unfool.runtime.validate import read_json


def record_start(run: Run, device: str) -> None:
    """Record what works on a run from now on, if any image is left.

    Each start has its own file, so processes that share the folder need no lock.

    Args:
        run: The run.
        device: Where the process computes.

    Raises:
        RuntimeError: A file of the run is damaged.
        OSError: The folder cannot be written.
    """
    if len(run.lines()) < len(run.manifest["indices"]):
        start = describe_start(device)
        name = f"{start['date'].replace(':', '-')}-{secrets.token_hex(4)}.json"
        write_bytes(run.folder / STARTS / name, (json.dumps(start, indent=1) + "\n").encode())


def starts(run: Run) -> list[Start]:
    """Return the recorded starts of a run, the earliest first; empty if there are none.

    Raises:
        RuntimeError: A file is damaged.
    """
    result: list[Start] = []
    for path in sorted((run.folder / STARTS).glob("*.json")):
        try:
            result.append(read_json(Start, path))
        except ValueError as error:
            raise RuntimeError(
                f"{error}; delete the file, which the report does not need"
            ) from error
    return result


def provenance(run: Run) -> Provenance:
    """Return where the numbers of a run come from.

    Raises:
        RuntimeError: A file of its starts is damaged.
    """
    manifest = run.manifest
    result: Provenance = {
        "starts": starts(run),
        "images": manifest["images"],
        "code": manifest["code"],
    }
    if "weights" in manifest:
        result["weights"] = manifest["weights"]
    return result
