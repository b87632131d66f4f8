"""Whether a worker sees the same bundle, studies and output folder as whoever sent it: by hash, not by name.

Of the studies, the names of all and the content of the first and the last are compared: reading a whole archive on
every machine would take longer than the work. Each study's own hash still stands in its record.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fourphase.benchmarks.archive.job import Job, Proof, Task
from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import FourphaseError, IntegrityError

__all__ = ["check_proof", "proved", "studies_hash"]

#: The file in the output folder that proves that it is shared; it lists the studies, of which there may be many.
_NAME = ".fourphase-archive"


@contextmanager
def proved(job: Job, tasks: Sequence[Task]) -> Iterator[Job]:
    """The job with its proof: a file in its output folder that only those see who share it, gone after the block.

    Raises: OutputNotWritable (30); as `load_bundle`.
    """
    from fourphase.runtime.bundle import load_bundle

    token = secrets.token_hex(16)
    folders = [Path(task.folder) for task in tasks]
    proof = Proof(load_bundle(Path(job.bundle)).sha256, studies_hash(folders), token)
    path = Path(job.output) / f"{_NAME}-{token}"
    write_file(path, b"\0".join(map(os.fsencode, folders)))
    try:
        yield replace(job, proof=proof)
    finally:
        path.unlink(missing_ok=True)


def check_proof(job: Job) -> None:
    """Raises: IntegrityError (21) if bundle, studies or output folder are not those of the caller."""
    from fourphase.runtime.bundle import load_bundle

    proof = job.proof
    if proof is None:
        return
    try:
        listed = (Path(job.output) / f"{_NAME}-{proof.token}").read_bytes()
    except OSError:
        raise _unshared("the output folder") from None
    try:
        bundle = load_bundle(Path(job.bundle)).sha256
    except FourphaseError:
        raise _unshared("the bundle") from None
    if bundle != proof.bundle:
        raise _unshared("the bundle")
    folders = [Path(os.fsdecode(name)) for name in listed.split(b"\0")]
    if studies_hash(folders) != proof.studies:
        raise _unshared("the folder of studies")


def studies_hash(folders: Sequence[Path]) -> str:
    """sha256 of which studies are there, and of all bytes of the first and the last."""
    from fourphase.runtime.study_snapshot import content_hash

    digest = hashlib.sha256()
    for folder in folders:
        state = "there" if folder.exists() else "missing"
        digest.update(os.fsencode(f"{folder.name}\0{state}\0"))
    for folder in dict.fromkeys([*folders[:1], *folders[-1:]]):
        try:
            digest.update(content_hash(folder).encode())
        except FourphaseError as error:
            digest.update(error.key.encode())
    return digest.hexdigest()


def _unshared(what: str) -> IntegrityError:
    return IntegrityError(
        f"a worker does not find {what} of this machine under the same path",
        "put bundle, studies and output on storage that all machines share under one path",
        key="not_shared",
    )
