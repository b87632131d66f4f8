"""Synthetic four-phase liver studies: anatomy, lesion, scan, DICOM. Nothing is imported here."""
