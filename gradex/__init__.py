"""gradex: choose the data sources a language model should be fine-tuned on."""

import os

__version__ = "0.1.0"

# One thread a process unless the user says otherwise: two torch threads on busy cores can be a
# hundred times slower than one. This has to happen before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
