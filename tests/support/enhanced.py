"""Enhanced multi-frame CT for tests, made of single-frame slices: the same geometry, values and times in groups.

>>> dataset = enhanced_dataset([slice_dataset(plane, (0, 0, z)) for z, plane in enumerate(planes)])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage

from tests.support.dicom import copied, uid

__all__ = ["agent", "enhanced_dataset", "frame_groups", "item", "usage"]

#: What a single-frame CT image says once and an enhanced one says in functional groups.
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
}
MOVED = ("ImageType", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "ConvolutionKernel", "InstanceNumber")


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def frame_groups(source: Dataset, index: int = 0) -> Dataset:
    """The functional groups that say what the single-frame slice said."""
    groups = item(**{name: [_taken(source, keywords)] for name, keywords in GROUPS.items()})
    groups.CTImageFrameTypeSequence = [
        item(
            FrameType=[*source.ImageType, "NONE"],
            PixelPresentation="MONOCHROME",
            VolumetricProperties="VOLUME",
            VolumeBasedCalculationTechnique="NONE",
        )
    ]
    content = item(DimensionIndexValues=[99 - index % 7], FrameReferenceDateTime="20000101000000")
    if "AcquisitionTime" in source:
        content.FrameAcquisitionDateTime = source.AcquisitionDate + source.AcquisitionTime
    if "AcquisitionNumber" in source:
        content.FrameAcquisitionNumber = int(source.AcquisitionNumber)
    groups.FrameContentSequence = [content]
    groups.CTReconstructionSequence = [item(ConvolutionKernel=source.ConvolutionKernel)]
    return groups


def _taken(source: Dataset, keywords: Sequence[str]) -> Dataset:
    return item(**{keyword: source[keyword].value for keyword in keywords if keyword in source})


def enhanced_dataset(slices: Sequence[Dataset], *, shared: Sequence[str] = (), **elements: Any) -> Dataset:
    """One enhanced CT image of the slices, frames in the order given.

    Args:
        shared: names of functional groups that are taken from the first slice for all.
        elements: pydicom keywords that replace what is at the top level; None removes one.
    """
    dataset = copied(slices[0])
    each = [frame_groups(one, index) for index, one in enumerate(slices)]
    for keyword in [*MOVED, *(keyword for keywords in GROUPS.values() for keyword in keywords)]:
        if keyword in dataset:
            del dataset[keyword]
    common = item(**{name: each[0][name].value for name in shared})
    for groups in each:
        for name in shared:
            del groups[name]
    defaults: dict[str, Any] = {
        "SOPClassUID": EnhancedCTImageStorage,
        "SOPInstanceUID": uid("enhanced", *(one.SOPInstanceUID for one in slices)),
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "NumberOfFrames": len(slices),
        "SharedFunctionalGroupsSequence": Items([common]),
        "PerFrameFunctionalGroupsSequence": Items(each),
    }
    for keyword, value in {**defaults, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            del dataset[keyword]
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    dataset["PixelData"].VR = "OW"
    return dataset


def usage(**elements: Any) -> Items:
    """A ContrastBolusUsageSequence of one agent."""
    return Items([item(ContrastBolusAgentNumber=1, **elements)])


def agent(start: str, number: int = 1) -> Dataset:
    """An item of ContrastBolusAgentSequence, injected at a time of the day."""
    profile = item(ContrastBolusStartTime=start, ContrastBolusVolume="90")
    return item(ContrastBolusAgentNumber=number, ContrastAdministrationProfileSequence=[profile])
