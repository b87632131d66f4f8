"""`fp-bench end-to-end`: DICOM to result, ours beside what a user would write in a day. Nothing is imported here."""
