"""`python -m localllm` is the command line."""

from localllm.cli.app import main

if __name__ == "__main__":
    main()
