"""`fp-bench hazards`: what DICOM can lie about, done to a phantom study, and who notices. Nothing is imported here."""
