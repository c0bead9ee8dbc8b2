"""Settings every test shares."""

import os

from server.commands.allocator import limit_arenas

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
limit_arenas()  # as a server does: hundreds of engines, one after the other, leave gigabytes in the arenas of threads
