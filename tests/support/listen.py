"""What the tests of `fp-listen` share: small studies, senders, and the events that were logged."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from fourphase.runtime.listen.instance import read_identity
from fourphase.runtime.listen.log import EventLog
from fourphase.runtime.listen.spool import Spool
from tests.support.dicom import file_bytes, slice_dataset, uid

__all__ = [
    "CT",
    "LEFT_OPEN",
    "SCANNER",
    "Log",
    "association",
    "ct_image",
    "dcmtk_program",
    "keep",
    "rtstruct",
    "send",
    "unused_port",
]

SCANNER = "SCANNER"
#: pynetdicom's client forgets the socket of a connection that the other side closed, and the garbage collector says so,
#: at any later time: `pytestmark = LEFT_OPEN` in every file that sends.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning")
CT = "1.2.840.10008.5.1.4.1.1.2"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


class Log(EventLog):
    """Keeps the events in place of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def attention(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def named(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.events if name == event]


def ct_image(index: int = 0, **elements: Any) -> Dataset:
    """One CT slice; `index` makes another instance of the same series."""
    stored = np.full((16, 16), 1000 + index, np.uint16)
    return slice_dataset(stored, (0, 0, 2.5 * index), **{"SOPInstanceUID": uid("image", index), **elements})


def rtstruct(**elements: Any) -> Dataset:
    """A structure set as far as the spool looks at it."""
    dataset = Dataset()
    for keyword, value in {
        "SOPClassUID": RTSTRUCT, "SOPInstanceUID": uid("rtstruct"), "StudyInstanceUID": uid("study"),
        "Modality": "RTSTRUCT", **elements,
    }.items():  # fmt: skip
        setattr(dataset, keyword, value)
    return dataset


def keep(spool: Spool, dataset: Dataset) -> bool:
    """Puts a data set into a spool as the receiver does."""
    data = file_bytes(dataset)
    with spool.incoming([data]) as path:
        identity = read_identity(path, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        return spool.keep(path, identity, hashlib.sha256(data).hexdigest())


@contextmanager
def association(port: int, classes: Sequence[str] = (CT,), **options: Any) -> Iterator[Association]:
    """An association with the receiver as SCANNER, unless `aet` or `called` say otherwise."""
    ae = AE(options.pop("aet", SCANNER))
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    for one in classes:
        ae.add_requested_context(one)
    opened = ae.associate("127.0.0.1", port, ae_title=options.pop("called", "FOURPHASE"), **options)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send(port: int, datasets: Sequence[Dataset | Path], **options: Any) -> list[int | None]:
    """The status of each C-STORE; None without an answer."""
    loaded = [dcmread(one) if isinstance(one, Path) else _with_meta(one) for one in datasets]
    statuses: list[int | None] = []
    with association(port, sorted({str(one.SOPClassUID) for one in loaded}), **options) as opened:
        for dataset in loaded:
            status = opened.send_c_store(dataset) if opened.is_established else Dataset()
            statuses.append(int(status.Status) if "Status" in status else None)
    return statuses


def _with_meta(dataset: Dataset) -> Dataset:
    from io import BytesIO

    return dcmread(BytesIO(file_bytes(dataset)))


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dcmtk_program(name: str) -> str:
    """DCMTK's program; pynetdicom installs Python scripts of the same names, which are not what is wanted."""
    for found in (f"/usr/bin/{name}", shutil.which(name)):
        if found and Path(found).is_file() and Path(found).read_bytes()[:2] != b"#!":
            return found
    pytest.skip(f"{name} (Debian package dcmtk) is not installed")
