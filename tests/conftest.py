"""Settings every test shares."""

import os
import signal

from server.commands.allocator import limit_arenas

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
limit_arenas()  # as a server does: hundreds of engines, one after the other, leave gigabytes in the arenas of threads
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background, and all that it starts, hears no Ctrl-C; some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
