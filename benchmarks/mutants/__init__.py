"""`fp-bench mutants`: damaged studies by the thousand, judged by an independent oracle. Nothing is imported here."""
