"""`python -m localllm.server [--ready-fd N]`: a daemon in the foreground; `--ready-fd` is for whoever starts it."""

import argparse
import sys
from collections.abc import Sequence

from localllm.errors import LocalLLMError
from localllm.server.app import library_of
from localllm.server.serving import run
from localllm.settings import load_settings


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="localllm.server")
    parser.add_argument("--ready-fd", type=int)
    ready_fd = parser.parse_args(argv).ready_fd
    try:
        settings = load_settings()
        return run(settings, library_of(settings), ready_fd=ready_fd)
    except LocalLLMError as error:
        print(f"localllm: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
