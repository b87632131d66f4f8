"""fp-listen: DICOM in by C-STORE, each complete study run once, the SR out. Nothing is imported here."""
