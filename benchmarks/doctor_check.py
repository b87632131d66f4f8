"""What `fp-doctor` says of this machine, as a step of the GPU check."""

from __future__ import annotations

import json
import subprocess
import sys

from fourphase.benchmarks.guarded_steps import Outcome, Save

__all__ = ["run_doctor"]

#: Its own exit code for a machine with a problem (docs/doctor.md); the report is there all the same.
_PROBLEM = 24
_SECONDS = 240


def run_doctor(save: Save) -> Outcome:
    """Runs `fp-doctor --json`.

    Result: `exit_code`, and `report`, what it printed.
    """
    command = [sys.executable, "-m", "fourphase.runtime.doctor_cli", "--json", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    print(run.stderr)
    try:
        report = json.loads(run.stdout)
    except ValueError:
        return Outcome("failed", f"fp-doctor ended with exit code {run.returncode} and no JSON")
    status = "ok" if run.returncode in (0, _PROBLEM) else "failed"
    reason = "" if status == "ok" else f"fp-doctor ended with exit code {run.returncode}"
    return Outcome(status, reason, {"exit_code": run.returncode, "report": report})
