"""Nothing wrong is ever loaded: damage, kills, full disks, stale and foreign plans."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fourphase.engine.plans import onnx_hashes
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.errors import IntegrityError, ModelIncompatible, OutputNotWritable, UsageError
from fourphase.runtime.plan_meta import plan_key
from fourphase.runtime.plan_store import PlanEntry, PlanStore
from tests.support.plans import META
from tests.support.tiny_bundle import write_tiny


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(load_bundle(write_tiny(tmp_path / "bundle").path))


def meta_for(store: PlanStore, plan: bytes, **changes: Any) -> dict[str, Any]:
    onnx = store.bundle.files[store.bundle.models["fp32"].file].sha256
    return {**META, "onnx_sha256": onnx, "plan_sha256": hashlib.sha256(plan).hexdigest(), **changes}


def only(store: PlanStore) -> PlanEntry:
    (entry,) = store.entries()
    return entry


def test_what_was_put_is_read_back(store: PlanStore) -> None:
    put = store.put(b"plan", meta_for(store, b"plan"))
    assert put.key == plan_key(meta_for(store, b""))
    found = store.find(put.key)
    assert found is not None
    assert (found.source, found.problem) == ("store", None)
    assert store.read(found) == b"plan"
    store.put(b"newer", meta_for(store, b"newer"))
    assert store.read(only(store)) == b"newer"
    assert not (store.folder / "quarantine").exists()


def test_an_entry_that_is_being_replaced_is_read_again(store: PlanStore) -> None:
    old = store.put(b"plan", meta_for(store, b"plan"))
    store.put(b"newer", meta_for(store, b"newer"))
    assert store.read(old) == b"newer"


def test_a_flipped_byte_is_quarantined_and_refused(store: PlanStore) -> None:
    entry = store.put(b"plan", meta_for(store, b"plan"))
    (store.folder / f"{entry.key}.plan").write_bytes(b"plao")
    with pytest.raises(IntegrityError, match=f"moved to quarantine/{entry.key}-1") as caught:
        store.read(entry)
    assert caught.value.code == 21
    assert store.entries() == ()
    kept = store.folder / "quarantine" / f"{entry.key}-1"
    assert (kept / f"{entry.key}.plan").read_bytes() == b"plao"
    assert "sha256" in (kept / "reason.txt").read_text()
    assert store.put(b"plan", meta_for(store, b"plan")).key == entry.key
    assert store.read(only(store)) == b"plan"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "schema"),
        (json.dumps({**META, "flavour": 3}), "flavour"),
        (json.dumps(META), "belongs to the key"),
        (json.dumps({**META, "batch": [1, 1, 2], "flags": {"x": float("nan")}}), "not finite"),
    ],
)
def test_a_description_that_is_not_right_is_no_entry(store: PlanStore, text: str, said: str) -> None:
    entry = store.put(b"plan", meta_for(store, b"plan"))
    (store.folder / f"{entry.key}.json").write_text(text)
    assert said in (only(store).problem or "")
    assert store.find(entry.key) is None
    (cleaned,) = store.clean(frozenset())
    assert "quarantine" in cleaned
    assert store.entries() == ()


def test_a_plan_without_its_file_or_description_is_no_entry(store: PlanStore) -> None:
    entry = store.put(b"plan", meta_for(store, b"plan"))
    (store.folder / f"{entry.key}.plan").unlink()
    assert only(store).problem == "its plan is missing"
    (store.folder / f"{entry.key}.plan").write_bytes(b"plan")
    (store.folder / f"{entry.key}.json").unlink()
    assert store.entries() == ()


def test_plans_of_another_model_are_moved_away(store: PlanStore) -> None:
    stale = store.put(b"plan", meta_for(store, b"plan", onnx_sha256="f" * 64))
    good = store.put(b"good", meta_for(store, b"good"))
    (line,) = store.clean(frozenset({good.meta["onnx_sha256"]}))  # type: ignore[index]
    assert stale.key in line
    assert "built from another model" in line
    assert only(store).key == good.key


def test_a_plan_that_everybody_can_change_is_not_run(store: PlanStore) -> None:
    entry = store.put(b"plan", meta_for(store, b"plan"))
    path = store.folder / f"{entry.key}.plan"
    path.chmod(0o666)
    assert "written by everybody" in (only(store).problem or "")
    path.chmod(0o644)
    store.folder.chmod(0o777)
    assert "written by everybody" in (only(store).problem or "")
    store.folder.chmod(0o755)
    assert only(store).problem is None


def test_what_no_reader_accepts_is_not_put(store: PlanStore) -> None:
    with pytest.raises(IntegrityError):
        store.put(b"plan", meta_for(store, b"other"))
    with pytest.raises(ModelIncompatible):
        store.put(b"plan", {"schema": "x"})
    assert store.entries() == ()


def test_plans_can_lie_outside_a_bundle_that_is_read_only(store: PlanStore, tmp_path: Path) -> None:
    outside = PlanStore(store.bundle, tmp_path / "plans")
    outside.put(b"plan", meta_for(store, b"plan"))
    assert store.entries() == ()
    assert outside.read(only(outside)) == b"plan"


def test_a_full_disk_leaves_the_old_plan_or_none(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.put(b"plan", meta_for(store, b"plan"))
    original = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputNotWritable, match="no space left"):
        store.put(b"newer", meta_for(store, b"newer"))
    monkeypatch.setattr(os, "fsync", original)
    assert store.find(entry.key) is None, "a plan of the old bytes with a description of the new would be wrong"
    assert not list(store.folder.glob(".*.tmp"))
    store.put(b"newer", meta_for(store, b"newer"))
    assert store.read(only(store)) == b"newer"


def test_a_plan_that_came_with_the_bundle_is_never_replaced(store: PlanStore, tmp_path: Path) -> None:
    meta = meta_for(store, b"plan")
    bundle = shipped(tmp_path, meta)
    own = PlanStore(bundle)
    with pytest.raises(UsageError, match="came with the bundle") as caught:
        own.put(b"newer", meta_for(store, b"newer"))
    assert "--plans DIR" in caught.value.hint
    assert own.read(only(own)) == b"plan"
    beside = PlanStore(bundle, tmp_path / "plans")
    beside.put(b"newer", meta_for(store, b"newer"))
    assert sorted(entry.source for entry in beside.entries()) == ["bundle", "store"]


def test_a_store_that_everybody_can_write_is_refused_before_the_build(store: PlanStore, tmp_path: Path) -> None:
    opened = PlanStore(store.bundle, tmp_path / "open")
    opened.folder.mkdir()
    good = opened.put(b"plan", meta_for(store, b"plan"))
    opened.folder.chmod(0o777)
    with pytest.raises(OutputNotWritable, match="written by everybody") as caught:
        opened.prepare("0" * 16)
    assert caught.value.key == "plan_store_open"
    assert opened.clean(frozenset()) == ()
    opened.folder.chmod(0o755)
    assert opened.read(only(opened)) == b"plan", good.key


def test_what_is_written_is_closed_whatever_the_umask(store: PlanStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        opened = PlanStore(store.bundle, tmp_path / "deep" / "plans")
        opened.put(b"plan", meta_for(store, b"plan"))
    finally:
        os.umask(before)
    assert only(opened).problem is None


def test_plans_of_another_bundle_stay_in_a_folder_that_several_share(store: PlanStore, tmp_path: Path) -> None:
    shared = PlanStore(store.bundle, tmp_path / "plans")
    other = shared.put(b"plan", meta_for(store, b"plan", onnx_sha256="f" * 64))
    assert shared.clean(frozenset()) == ()
    assert shared.read(only(shared)) == b"plan", other.key


def test_a_plan_that_was_being_written_is_not_cleaned_away(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between `put`'s two writes a reader sees a broken entry; under the lock it is whole."""
    entry = store.put(b"plan", meta_for(store, b"plan"))
    unfinished = PlanEntry(entry.key, "store", None, "its plan is missing")
    monkeypatch.setattr(store, "entries", lambda: (unfinished,))
    assert store.clean(onnx_hashes(store.bundle)) == ()
    monkeypatch.undo()
    assert store.find(entry.key) is not None


def test_who_may_only_read_waits_for_the_writer(store: PlanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store.put(b"plan", meta_for(store, b"plan"))
    store.put(b"newer", meta_for(store, b"newer"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert store.read(old) == b"newer"
    (store.folder / f"{old.key}.plan").write_bytes(b"flipped")
    with pytest.raises(IntegrityError, match="could not be moved"):
        store.read(only(store))
    with pytest.raises(OutputNotWritable, match="permission denied"):
        store.put(b"plan", meta_for(store, b"plan"))


WRITER = """
import hashlib, sys
from pathlib import Path
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.plan_store import PlanStore
import json
store = PlanStore(load_bundle(Path(sys.argv[1])))
meta = json.loads(sys.argv[2])
number = 0
print("up", flush=True)
while True:
    number += 1
    plan = bytes([number % 251]) * 2_000_000
    store.put(plan, {**meta, "plan_sha256": hashlib.sha256(plan).hexdigest()})
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_never_leave_a_wrong_plan(store: PlanStore) -> None:
    """A reader beside a writer that is killed (SIGKILL) in the middle: every plan it gets is one whole plan."""
    moments = random.Random(4)
    read = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(store.bundle.path), json.dumps(meta_for(store, b""))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            deadline = time.monotonic() + moments.uniform(0.0, 0.25)
            while time.monotonic() < deadline:
                read += read_whole(store)
            writer.send_signal(signal.SIGKILL)
        read += read_whole(store)
    assert read > 20
    assert not (store.folder / "quarantine").exists()
    store.put(b"plan", meta_for(store, b"plan"))
    assert store.read(only(store)) == b"plan"
    assert not list(store.folder.glob(".*.tmp")), "what killed writers leave is taken away"


def read_whole(store: PlanStore) -> int:
    for entry in store.entries():
        if entry.problem is None:
            data = store.read(entry)
            assert len(data) == 2_000_000
            assert set(data) == {data[0]}
            return 1
        assert entry.problem.startswith(("its plan is missing", "its description cannot be read")), entry.problem
    return 0


def test_the_bundles_own_plans_are_held_to_its_manifest(store: PlanStore, tmp_path: Path) -> None:
    bundle = shipped(tmp_path, meta_for(store, b"plan"))
    own = PlanStore(bundle)
    entry = only(own)
    assert (entry.source, entry.problem) == ("bundle", None)
    assert own.read(entry) == b"plan"
    (bundle.path / f"engines/{entry.key}.plan").write_bytes(b"plao")
    with pytest.raises(IntegrityError, match="differs from its manifest"):
        own.read(entry)
    assert (bundle.path / f"engines/{entry.key}.plan").exists(), "what was shipped is not moved"
    (bundle.path / f"engines/{entry.key}.json").write_text("{}")
    with pytest.raises(IntegrityError):
        own.entries()


def shipped(folder: Path, meta: dict[str, Any]) -> Bundle:
    """A bundle that was written with an engine."""
    from dataclasses import replace

    from fourphase.engine.build import EnginePlan
    from fourphase.engine.bundle import contents_of, write_bundle

    contents = contents_of(load_bundle(folder / "bundle"))
    return write_bundle(folder / "shipped", replace(contents, engines=(EnginePlan(b"plan", meta),)))
