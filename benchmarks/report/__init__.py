"""`fp-bench report`, `render` and `compare`: every section in one run, its pages, and two runs side by side."""
