import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, KINDS, PHASES, Phantom, make_phantom
from fourphase.benchmarks.phantoms.phantom_dicom import WrittenStudy, write_study
from fourphase.benchmarks.phantoms.phantom_headers import make_header
from fourphase.benchmarks.phantoms.scan import make_scans
from fourphase.runtime.box import read_box
from fourphase.runtime.errors import OutputNotWritable
from fourphase.runtime.phases import assign_phases
from fourphase.runtime.study import read_study

MATRIX, SLICES = 64, 24


def nothing(steps: int) -> None:
    pass


def quiet_phantom(kind: str = "HCC", seed: int = 2) -> Phantom:
    return replace(make_phantom(kind, seed), noise_hu=0.0)


def write(folder: Path, phantom: Phantom) -> WrittenStudy:
    return write_study(folder, phantom, MATRIX, SLICES, nothing)


def headers(study: WrittenStudy) -> Iterator[tuple[Path, Dataset]]:
    for path in sorted(study.dicom.rglob("*")):
        if path.is_file():
            yield path, pydicom.dcmread(path)


@pytest.fixture(scope="module", params=[("HCC", 2), ("ICC", 3)], ids=lambda param: f"{param[0]}-{param[1]}")
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Phantom, WrittenStudy]:
    phantom = quiet_phantom(*request.param)
    return phantom, write(tmp_path_factory.mktemp("study") / "case", phantom)


def test_simpleitk_reads_the_phantoms_hu_at_its_own_physical_points(study: tuple[Phantom, WrittenStudy]) -> None:
    phantom, written = study
    truth = json.loads((written.folder / "truth.json").read_text())
    for phase in PHASES:
        series = truth["series"][phase]
        folder = next(path.parent for path, image in headers(written) if image.SeriesInstanceUID == series)
        volume = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        assert volume.GetSize() == (MATRIX, MATRIX, SLICES)
        assert volume.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        x, y, z = (volume.GetOrigin()[i] + volume.GetSpacing()[i] * np.arange(volume.GetSize()[i]) for i in range(3))
        hu = phantom.hu(phase, x[None, None, :], y[None, :, None], z[:, None, None])
        # Half a HU of rounding, and steep edges times the micrometre to which SimpleITK knows the spacing.
        np.testing.assert_allclose(sitk.GetArrayFromImage(volume), hu.clip(-1024, 3071), atol=1.5)


def test_every_file_is_valid_and_says_it_is_no_patient(study: tuple[Phantom, WrittenStudy]) -> None:
    _, written = study
    found = list(headers(written))
    assert len(found) == 4 * SLICES + 2
    assert written.bytes_written == sum(path.stat().st_size for path, _ in found)
    uids = [str(image.SOPInstanceUID) for _, image in found]
    assert len(set(uids)) == len(uids)
    assert {str(image.PatientName).startswith("PHANTOM^") for _, image in found} == {True}
    assert len({(image.StudyInstanceUID, image.PatientID) for _, image in found}) == 1
    for _, image in found:
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert all(UID(element.value).is_valid for element in image if element.VR == "UI")
        image.pixel_array.sum()


def test_names_and_numbers_give_nothing_away(study: tuple[Phantom, WrittenStudy]) -> None:
    phantom, written = study
    folders = {path.parent.name for path, _ in headers(written)}
    assert len(folders) == 6
    for path, image in headers(written):
        text = f"{path.relative_to(written.dicom)} {image}".upper()
        assert "CHOLANGIO" not in text
        assert phantom.kind not in text
    slices = [image for path, image in headers(written) if image.get("ImageType", [""] * 3)[2] == "AXIAL"]
    by_name = [float(image.ImagePositionPatient[2]) for image in slices[:SLICES]]
    assert by_name not in (sorted(by_name), sorted(by_name, reverse=True))
    numbered = sorted(slices[:SLICES], key=lambda image: int(image.InstanceNumber))
    by_number = [float(image.ImagePositionPatient[2]) for image in numbered]
    assert by_number in (sorted(by_number), sorted(by_number, reverse=True))


def test_the_runtime_finds_all_phases_by_agreeing_evidence(study: tuple[Phantom, WrittenStudy]) -> None:
    _, written = study
    truth = json.loads((written.folder / "truth.json").read_text())
    read = read_study(written.dicom)
    matches, notices = assign_phases(read, PHASES, {})
    assert {phase: match.series.uid for phase, match in matches.items()} == truth["series"]
    assert not notices
    assert not read.warnings
    assert sum(read.skipped.values()) == 2


def test_box_and_mask_agree_and_hold_the_lesion(study: tuple[Phantom, WrittenStudy]) -> None:
    phantom, written = study
    box = read_box(written.box, None)
    mask = read_box(written.folder / "lesion_mask.nii.gz", None)
    np.testing.assert_allclose(box.region.min, mask.region.min, atol=1e-3)
    np.testing.assert_allclose(box.region.max, mask.region.max, atol=1e-3)
    half_voxel = np.array(written.spacing_mm) / 2
    assert (np.abs(np.subtract(box.region.min, phantom.lesion_bounds.min)) <= half_voxel * 1.6).all()
    assert (np.abs(np.subtract(box.region.max, phantom.lesion_bounds.max)) <= half_voxel * 1.6).all()
    frames = {image.FrameOfReferenceUID for _, image in headers(written) if "FrameOfReferenceUID" in image}
    assert frames == {box.frame_of_reference_uid}


def test_the_same_phantom_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        written = write(tmp_path / name, make_phantom("HCC", 6))
        files = sorted(path for path in written.folder.rglob("*") if path.is_file())
        digests.append([(p.relative_to(tmp_path / name), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1]


def test_different_images_never_share_a_uid(tmp_path: Path) -> None:
    uids = set()
    for kind, difficulty, slices in (("HCC", 0.3, 24), ("ICC", 0.3, 24), ("HCC", 0.4, 24), ("HCC", 0.3, 30)):
        phantom = make_phantom(kind, 1, difficulty)
        header = make_header(phantom, make_scans(phantom, 64, slices)[BOX_PHASE])
        uids.add(header.study_uid)
    assert len(uids) == 4


def test_anything_already_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "mine.txt").write_text("mine")
    with pytest.raises(OutputNotWritable) as caught:
        write(tmp_path / "case", quiet_phantom())
    assert caught.value.key == "output_exists"
    assert [path.name for path in tmp_path.rglob("*")] == ["case", "mine.txt"]


def test_an_interrupted_study_leaves_nothing(tmp_path: Path) -> None:
    def stop(steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_study(tmp_path / "case", quiet_phantom(), MATRIX, SLICES, stop)
    assert list(tmp_path.iterdir()) == []


def seeds_of_all_languages() -> list[tuple[str, int]]:
    """The first phantom of every character set and description."""
    found: dict[str, tuple[str, int]] = {}
    for seed in range(60):
        phantom = make_phantom(KINDS[seed % 2], seed)
        header = make_header(phantom, make_scans(phantom, MATRIX, SLICES)[BOX_PHASE])
        found.setdefault(header.series["DL"].description.rsplit(" ", 2)[0], (phantom.kind, seed))
    return list(found.values())


LANGUAGES = seeds_of_all_languages()


def test_all_languages_are_drawn() -> None:
    assert len(LANGUAGES) == 11


@pytest.mark.parametrize(("kind", "seed"), LANGUAGES)
def test_phases_are_found_in_every_language(kind: str, seed: int, tmp_path: Path) -> None:
    written = write_study(tmp_path / "case", make_phantom(kind, seed), MATRIX, 16, nothing)
    images = [image for _, image in headers(written) if image.SOPClassUID == CTImageStorage]
    drawn = {image.SeriesDescription for image in images} - {"Topogram"}
    assert drawn == set(written.descriptions)
    matches, _ = assign_phases(read_study(written.dicom), PHASES, {})
    assert all(any(evidence.startswith("description:") for evidence in m.evidence) for m in matches.values())
