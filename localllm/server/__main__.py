"""`python -m localllm.server [--ready-fd N]`: a daemon in the foreground; `--ready-fd` is for whoever starts it."""

import sys

from localllm.server.app import library_of
from localllm.server.serving import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], library_of))
